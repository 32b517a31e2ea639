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
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from common.results import RESULTS, write
from matplotlib.figure import Figure
from torch import Tensor

from kt_ray.config import DatasetConfig, TranslatorConfig
from kt_ray.data import Dataset, LabelledImages, load_dataset
from kt_ray.networks import Architecture, State
from kt_ray.translation.block_runner import stem_activations, surround
from kt_ray.translation.checkpoint import load_translator
from kt_ray.translation.translator import Translator, build_translator
from kt_ray.translation.transplants import readable
from kt_ray.translation.units import write as written
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore

AT_ONCE = 160  # members times probes in a batch: what stays in the cache
FEW, IMAGES = 8, 50  # members and images at once
BUDGETS = (5, 10, 50)  # milliseconds
UNLEARNED = ((16, 1), (80, 3))  # probes, steps


@dataclass
class Arm:
    """One kind of block: translators, a seed each, and what they cost and reach on one zoo."""

    learned: bool
    translators: list[Translator]
    milliseconds: list[float] = field(default_factory=list)
    accuracies: list[Tensor] = field(default_factory=list)

    def summary(self, ceiling: float, source: float) -> dict[str, float]:
        """Ratios to the mean accuracy of trained targets: mean over seeds, their range, the worst network of any seed;
        the mean over that of sources; median milliseconds."""
        means = [float(part.mean()) / ceiling for part in self.accuracies]
        return {
            "mean_ratio": statistics.mean(means),
            "spread": max(means) - min(means),
            "min_ratio": min(float(part.min()) for part in self.accuracies) / ceiling,
            "mean_over_source": statistics.mean(means) * ceiling / source,
            "min_over_source": min(float(part.min()) for part in self.accuracies) / source,
            "milliseconds": statistics.median(self.milliseconds),
            "seeds": len(means),
        }


class Unlearned(Translator):
    """A translator whose family is left out: the base, then the steps."""

    def forward(self, source: State) -> State:
        assert self.projector is not None
        around = self.projector.surroundings(source)
        units = self.projector(source, around)[0].units
        if self.refiner is not None:
            units = self.refiner([units], units, source, around)
        return written(units, self.layout)


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
    store = ZooStore(arguments.zoo)
    zoo, dataset = store.read().where("test"), load_dataset(DatasetConfig(**store.definition()["dataset"]))
    arms = learned_arms(arguments.learned) | unlearned_arms(zoo.architecture, dataset, arguments.seeds)
    accuracies = measure(arms, zoo, dataset.test.take(slice(0, arguments.images)), arguments.rounds)
    ceiling, source = (float(accuracies[kind].mean()) for kind in ("trained target", "source"))
    summaries = {name: arm.summary(ceiling, source) for name, arm in arms.items()}
    lines = "\n".join(table(accuracies, summaries, arguments.images))
    found = summaries | {"trained target": ceiling, "source": source}
    write(arguments.name, headlines(summaries, arms), found, list(range(arguments.seeds)), lines)
    print(lines)
    figure(summaries, arms, arguments.name)


def learned_arms(named: list[str]) -> dict[str, Arm]:
    """Return an arm for each name, with every translator that is given under it."""
    files: dict[str, list[Path]] = defaultdict(list)
    for item in named:
        name, file = item.split("=", 1)
        files[name].append(Path(file))
    return {
        f"learned, {name}": Arm(True, [load_translator(path).translator.eval() for path in paths])
        for name, paths in files.items()
    }


def unlearned_arms(architecture: Architecture, dataset: Dataset, seeds: int) -> dict[str, Arm]:
    """Return the arms of `UNLEARNED`."""
    options = {
        f"unlearned, {probes} probes, {steps} steps": (
            probes,
            {"steps": steps, "method": "gauss_newton", "images": "projection"},
        )
        for probes, steps in UNLEARNED
    }
    return {
        name: Arm(False, [unlearned(architecture, dataset, *option, seed) for seed in range(seeds)])
        for name, option in options.items()
    }


def unlearned(
    architecture: Architecture, dataset: Dataset, probes: int, refinement: dict[str, object], seed: int
) -> Translator:
    """Return an untrained translator on mixture probes of `seed`."""
    config = TranslatorConfig(
        family="axial_transformer", base="projected", projection={"probes": probes}, refinement=refinement
    )
    body = build_translator(config, architecture).body
    translator = Unlearned(body, config, architecture)
    translator.draw_probes(dataset.train.images, torch.Generator().manual_seed(1000 + seed))
    return translator.eval()


def measure(arms: dict[str, Arm], zoo: Zoo, images: LabelledImages, rounds: int) -> dict[str, Tensor]:
    """Fill in the costs and accuracies of `arms`, and return those of sources and trained targets."""
    members = readable(zoo)
    blocks: dict[tuple[str, int], State] = {}
    for name, arm in arms.items():
        for seed, translator in enumerate(arm.translators):
            blocks[name, seed], taken = timed(translator, members, rounds)
            arm.milliseconds.append(taken)
        print(name, f"{statistics.median(arm.milliseconds):.2f} ms", flush=True)
    named = {f"{name}/{seed}": block for (name, seed), block in blocks.items()}
    accuracies = predicted_right(named | {"trained target": zoo.part("target")}, zoo, images)
    for name, arm in arms.items():
        arm.accuracies = [accuracies[f"{name}/{seed}"] for seed in range(len(arm.translators))]
    return {name: accuracies[name] for name in ("source", "trained target")}


@torch.no_grad()
def predicted_right(blocks: dict[str, State], zoo: Zoo, images: LabelledImages) -> dict[str, Tensor]:
    """Return the accuracies of each member with each kind of block, and with its source."""
    members = readable(zoo)
    right = {name: torch.zeros(len(zoo)) for name in [*blocks, "source"]}
    for start in range(0, len(zoo), FEW):
        rows = slice(start, start + FEW)
        few = {name: value[rows] for name, value in members.items()}
        for batch, labels in images.batches(IMAGES):
            around = surround(few, stem_activations(few, batch, zoo.architecture), zoo.architecture)
            logits = {"source": around.wanted_logits}
            for name, block in blocks.items():
                outputs = around.outputs({key: value[rows] for key, value in block.items()})
                logits[name] = around.logits(around.features(outputs))
            for name, found in logits.items():
                right[name][rows] += (found.argmax(-1) == labels).sum(1)
    return {name: count / len(images) for name, count in right.items()}


@torch.no_grad()
def timed(translator: Translator, members: State, rounds: int) -> tuple[State, float]:
    """Return the translated blocks of `members` and the processor's milliseconds a member, the least of the rounds."""
    assert translator.projector is not None
    step, total = max(2, AT_ONCE // len(translator.projector.probes)), len(members["conv1.weight"])
    times, parts = [], []
    for number in range(rounds + 1):  # the first one warms up
        starts = range(0, total if number else step, step)
        began = time.process_time()
        parts = [translator({name: value[at : at + step] for name, value in members.items()}) for at in starts]
        times.append(time.process_time() - began)
    blocks = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return blocks, 1000 * min(times[1:]) / total


def table(accuracies: dict[str, Tensor], summaries: dict[str, dict[str, float]], images: int) -> list[str]:
    """Return the lines of one zoo."""
    ceiling, source = (float(accuracies[kind].mean()) for kind in ("trained target", "source"))
    lines = [
        f"{len(accuracies['source'])} held-out networks, {images:,} test images. Ratios are to the mean "
        f"accuracy of trained targets, {ceiling:.4f}; the worst of them is at "
        f"{float(accuracies['trained target'].min()) / ceiling:.4f}, sources are at {source / ceiling:.4f}.",
        "",
        "| block | ms | mean ratio | range over seeds | worst of any seed | mean, worst over source | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, values in sorted(summaries.items(), key=lambda item: item[1]["milliseconds"]):
        lines.append(
            f"| {arm} | {values['milliseconds']:.1f} | {values['mean_ratio']:.4f} | {values['spread']:.4f} "
            f"| {values['min_ratio']:.4f} | {values['mean_over_source']:.4f}, {values['min_over_source']:.4f} "
            f"| {values['seeds']} |"
        )
    return [*lines, ""]


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
