"""Accuracy against milliseconds a network: least squares and Gauss-Newton steps, with and without what is learned.

Held-out networks are test members of zoos of other seeds, and of another recipe, than the one that was learned from.
Every arm is made from several seeds. Unlearned: mixture probes of that seed, least squares, steps on the same probes.
Learned: translators of the study files for each budget, a seed each; what they carry (probes, correction, steps) is
trained. A translation's cost is processor time of one thread in batches, the least of a few rounds, since other work
on the machine only adds to it.

    KT_RAY_DATA=… kt-ray zoo build benchmarks/frontier_fresh.yaml            (and frontier_other_recipe.yaml)
    KT_RAY_DATA=… kt-ray run benchmarks/frontier_fast.yaml --set trial.seed=0   (and frontier_exact.yaml, seeds 1 and 2)
    KT_RAY_DATA=… python benchmarks/frontier.py FRESH --learned fast=FILE … exact=FILE …
"""

from __future__ import annotations

import argparse

import torch
from common.markdown import table
from common.results import RESULTS, write
from frontier_arms import Arm, learned_arms, measure, unlearned_arms
from matplotlib.figure import Figure
from torch import Tensor

from kt_ray.studies.zoos import zoo_and_dataset

BUDGETS = (5, 10, 50)  # milliseconds


def main() -> None:
    """Measure every arm and write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", help="directory or URI whose test members are held out")
    parser.add_argument("--learned", nargs="*", default=[], metavar="NAME=FILE", help="translators, a seed each")
    parser.add_argument("--seeds", type=int, default=3, help="of unlearned arms")
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument("--name", default="frontier", help="of the result's files")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    members, dataset = zoo_and_dataset(arguments.zoo, None)
    zoo = members.where("test")
    arms = learned_arms(arguments.learned) | unlearned_arms(zoo.architecture, dataset, arguments.seeds)
    accuracies = measure(arms, zoo, dataset.test.take(slice(0, arguments.images)), arguments.rounds)
    ceiling, source = (float(accuracies[kind].mean()) for kind in ("trained target", "source"))
    summaries = {name: arm.summary(ceiling, source) for name, arm in arms.items()}
    text = text_of(accuracies, summaries, arguments.images)
    found = summaries | {"trained target": ceiling, "source": source}
    write(arguments.name, headlines(summaries, arms), found, list(range(arguments.seeds)), text)
    print(text)
    figure(summaries, arms, arguments.name)


def text_of(accuracies: dict[str, Tensor], summaries: dict[str, dict[str, float]], images: int) -> str:
    """Return the table of one zoo, with what its figures are."""
    ceiling, source = (float(accuracies[kind].mean()) for kind in ("trained target", "source"))
    about = (
        f"{len(accuracies['source'])} held-out networks, {images:,} test images. Ratios are to the mean "
        f"accuracy of trained targets, {ceiling:.4f}; the worst of them is at "
        f"{float(accuracies['trained target'].min()) / ceiling:.4f}, sources are at {source / ceiling:.4f}."
    )
    rows = [
        {
            "block": arm,
            "ms": f"{values['milliseconds']:.1f}",
            "mean ratio": f"{values['mean_ratio']:.4f}",
            "range over seeds": f"{values['spread']:.4f}",
            "worst of any seed": f"{values['min_ratio']:.4f}",
            "mean, worst over source": f"{values['mean_over_source']:.4f}, {values['min_over_source']:.4f}",
            "seeds": values["seeds"],
        }
        for arm, values in sorted(summaries.items(), key=lambda item: item[1]["milliseconds"])
    ]
    return f"{about}\n\n{table(rows)}"


def best(summaries: dict[str, dict[str, float]], arms: dict[str, Arm], budget: float, learned: bool) -> str | None:
    """Return the name of the best arm within `budget` milliseconds."""
    within = [n for n, v in summaries.items() if arms[n].learned is learned and v["milliseconds"] <= budget]
    return max(within, key=lambda name: summaries[name]["mean_ratio"], default=None)


def headlines(summaries: dict[str, dict[str, float]], arms: dict[str, Arm]) -> dict[str, float]:
    """Return the best within each budget, learned and unlearned, and their difference."""
    headline: dict[str, float] = {}
    for budget in BUDGETS:
        names = {kind: best(summaries, arms, budget, kind == "learned") for kind in ("learned", "unlearned")}
        found = {kind: summaries[name] for kind, name in names.items() if name}
        if not found:
            continue
        first = max(found.values(), key=lambda values: values["mean_ratio"])
        headline |= {f"at_{budget}ms_{ratio}": first[ratio] for ratio in ("mean_ratio", "min_ratio")}
        for kind, values in found.items():
            headline |= {f"{kind}_at_{budget}ms_{ratio}": values[ratio] for ratio in ("mean_ratio", "mean_over_source")}
        if len(found) == 2:
            difference = found["learned"]["mean_ratio"] - found["unlearned"]["mean_ratio"]
            headline[f"learned_minus_unlearned_at_{budget}ms"] = difference
    return headline


def figure(summaries: dict[str, dict[str, float]], arms: dict[str, Arm], result: str) -> None:
    """Draw accuracy against milliseconds, learned and unlearned side by side, with the range over seeds."""
    drawn = Figure(figsize=(7, 4), layout="constrained")
    axes = drawn.subplots()
    for learned, color in ((False, "tab:blue"), (True, "tab:orange")):
        chosen = [v for n, v in summaries.items() if arms[n].learned is learned and arms[n].translators]
        chosen.sort(key=lambda values: values["milliseconds"])
        times, means, ranges = ([values[key] for values in chosen] for key in ("milliseconds", "mean_ratio", "spread"))
        label = "learned" if learned else "unlearned"
        axes.errorbar(times, means, [part / 2 for part in ranges], fmt="o", color=color, label=label, capsize=2)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds a network (one thread, in batches)")
    axes.set_ylabel("accuracy over the trained target's")
    axes.legend()
    drawn.savefig(RESULTS / f"{result}.png", dpi=120)


if __name__ == "__main__":
    main()
