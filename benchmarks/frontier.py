"""Accuracy against milliseconds a member: least squares alone and with a learned correction, then refined or not.

Held-out members are the test members of a zoo, which nothing was trained on or chosen by. A translation's cost is
processor time of one thread in batches, the median of a few rounds; probes are drawn before it. Each kind of block is
timed and evaluated once for what is unlearned and once for each learned translator (another seed each).

    KT_RAY_DATA=… kt-ray run benchmarks/frontier.yaml --workspace WORKSPACE
    KT_RAY_DATA=… python benchmarks/frontier.py WORKSPACE/zoos/zoo-mnist-sources --learned TRANSLATOR
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from common.results import RESULTS, write
from matplotlib.figure import Figure
from torch import Tensor

from kt_ray.config import DatasetConfig, TranslatorConfig
from kt_ray.data import load_dataset
from kt_ray.networks import State
from kt_ray.studies.study_file import read_study
from kt_ray.translation.checkpoint import load_translator
from kt_ray.translation.evaluation import Transplants, readable
from kt_ray.translation.probe_images import mixture, to_parameters
from kt_ray.translation.translator import Translator, build_translator
from kt_ray.translation.units import write as written
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore

STUDY = Path(__file__).with_suffix(".yaml")
AT_ONCE = 32
BUDGETS = (5, 50)  # milliseconds


def refinements(
    second_order: Sequence[int], adam: Sequence[int], probes: Sequence[int]
) -> dict[str, dict[str, object]]:
    """Return options of refinement by name, none first."""
    found: dict[str, dict[str, object]] = {"no step": {"steps": 0}}
    for count in probes:
        for steps in second_order:
            options = {"method": "newton", "steps": steps, "probes": count, "probe_sets": 1}
            found[f"{steps} on {count} images, second-order"] = options | {"trained": False, "predictions": 1.0}
    for steps in adam:
        sets = min(8, steps)
        found[f"{steps} Adam"] = {
            "steps": steps,
            "trained": False,
            "predictions": 0.5,
            "probes": 24,
            "probe_sets": sets,
        }
    return found


def refined(learned: Translator, options: dict[str, object], drawn: Tensor, *, correct: bool) -> Translator:
    """Return a translator of the learned one's probes with other refinement, with its weights too if `correct`."""
    content = learned.config.model_dump()
    content["refinement"] |= options
    translator = build_translator(TranslatorConfig.model_validate(content), learned.architecture)
    state = learned.state_dict()
    if correct:
        translator.load_state_dict(state, strict=False)
    assert translator.projector is not None
    translator.projector.probes.data = state["projector.probes"].clone()
    if translator.refiner is not None:
        probes = translator.refiner.probes
        probes.data = to_parameters(drawn[: len(probes)]).to(probes)
    return translator.eval()


@torch.no_grad()
def blocks(translator: Translator, members: State, *, correct: bool) -> State:
    """Return the translated blocks of `members`, without running the family if not `correct`."""
    parts = []
    for start in range(0, len(members["conv1.weight"]), AT_ONCE):
        few = {name: value[start : start + AT_ONCE] for name, value in members.items()}
        if correct:
            parts.append(translator(few))
            continue
        assert translator.projector is not None
        units = translator.projector(few)[0].units
        if translator.refiner is not None:
            units = translator.refiner([units], units, few)
        parts.append(written(units, translator.layout))
    return {name: torch.cat([part[name].detach() for part in parts]) for name in parts[0]}


def main() -> None:
    """Measure every kind of block and write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", help="directory or URI whose test members are held out")
    parser.add_argument("--learned", nargs="*", type=Path, default=[], help="translators, a seed each")
    parser.add_argument("--members", type=int, default=64, help="at most")
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument("--second-order", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--adam", nargs="*", type=int, default=[16, 48, 128, 384])
    parser.add_argument("--probes", nargs="+", type=int, default=[64, 192], help="of second-order steps")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    store = ZooStore(arguments.zoo)
    zoo, dataset = store.read(), load_dataset(DatasetConfig(**store.definition()["dataset"]))
    held_out = zoo.where("test")
    held_out = held_out.take(torch.arange(min(arguments.members, len(held_out))))
    learned = [load_translator(path) for path in arguments.learned]
    drawn = mixture(dataset.train.images, 192, torch.Generator().manual_seed(1))
    made: dict[str, State] = {"source": held_out.part("source"), "trained target": held_out.part("target")}
    taken: dict[str, float] = {}
    base = learned[0].translator if learned else unlearned(held_out, drawn)
    for name, options in refinements(arguments.second_order, arguments.adam, arguments.probes).items():
        arms = {f"unlearned, {name}": refined(base, options, drawn, correct=False)}
        for number, loaded in enumerate(learned):
            arms[f"learned {number}, {name}"] = refined(loaded.translator, options, drawn, correct=True)
        for arm, translator in arms.items():
            made[arm], taken[arm] = measured(translator, held_out, arguments.rounds, correct=arm.startswith("learned"))
            print(arm, f"{taken[arm]:.2f} ms", flush=True)
    images = dataset.test.take(slice(0, arguments.images))
    predicted = Transplants(held_out, images, keep=0).predictions(made)
    accuracies = {name: (classes == images.labels).float().mean(1) for name, classes in predicted.items()}
    report(accuracies, taken, [loaded.extra for loaded in learned], len(images))


def unlearned(zoo: Zoo, drawn: Tensor) -> Translator:
    """Return a fresh translator over blocks that are projected on the first of the images `drawn`."""
    translator = build_translator(read_study(STUDY).trial.translator, zoo.architecture)
    assert translator.projector is not None
    probes = translator.projector.probes
    probes.data = to_parameters(drawn[: len(probes)]).to(probes)
    return translator


def measured(translator: Translator, held_out: Zoo, rounds: int, *, correct: bool) -> tuple[State, float]:
    """Return the blocks and the processor's milliseconds a member."""
    members = readable(held_out)
    found: State = blocks(translator, {name: value[:2] for name, value in members.items()}, correct=correct)  # warm
    times = []
    for _ in range(rounds):
        began = time.process_time()
        found = blocks(translator, members, correct=correct)
        times.append(time.process_time() - began)
    return found, 1000 * statistics.median(times) / len(held_out)


def report(
    accuracies: dict[str, Tensor], taken: dict[str, float], extras: list[dict[str, object]], images: int
) -> None:
    """Write results, table and figure."""
    ceiling = float(accuracies["trained target"].mean())
    mean = {name: float(values.mean()) / ceiling for name, values in accuracies.items()}
    worst = {name: float(values.min()) / ceiling for name, values in accuracies.items()}
    lines = ["| block | ms a member | mean ratio | worst ratio |", "|---|---|---|---|"]
    for name in accuracies:
        cost = f"{taken[name]:.2f}" if name in taken else ""
        lines.append(f"| {name} | {cost} | {mean[name]:.4f} | {worst[name]:.4f} |")
    count = len(accuracies["source"])
    lines += ["", f"{count} held-out networks, {images:,} test images. Ratios are to the trained target's mean."]
    results = {"mean_ratio": mean, "min_ratio": worst, "milliseconds": taken, "learned": extras, "ceiling": ceiling}
    write("frontier", headlines(mean, worst, taken), results, list(range(len(extras))), "\n".join(lines))
    print("\n".join(lines))
    figure(mean, taken)


def headlines(mean: dict[str, float], worst: dict[str, float], taken: dict[str, float]) -> dict[str, float]:
    """Return the best within each budget, and blocks of no step: the least squares alone, and learned from seed 0."""
    headline: dict[str, float] = {}
    for kind, name in (("unlearned", "unlearned, no step"), ("learned", "learned 0, no step")):
        if name in mean:
            headline |= {f"{kind}_no_step_mean_ratio": mean[name], f"{kind}_no_step_min_ratio": worst[name]}
    for budget in BUDGETS:
        best = {}
        for kind in ("unlearned", "learned"):
            within = [name for name, cost in taken.items() if name.startswith(kind) and cost <= budget]
            best[kind] = max(within, key=lambda name: mean[name], default=None)
        found = [name for name in best.values() if name]
        if not found:
            continue
        first = max(found, key=lambda name: mean[name])
        headline |= {f"at_{budget}ms_mean_ratio": mean[first], f"at_{budget}ms_min_ratio": worst[first]}
        if len(found) == 2:
            difference = mean[str(best["learned"])] - mean[str(best["unlearned"])]
            headline[f"learned_minus_unlearned_at_{budget}ms"] = difference
    return headline


def figure(mean: dict[str, float], taken: dict[str, float]) -> None:
    """Draw accuracy against milliseconds, learned and unlearned side by side."""
    drawn = Figure(figsize=(7, 4), layout="constrained")
    axes = drawn.subplots()
    for kind in sorted({name.split(",")[0] for name in taken}):
        for method, marker in (("no step", "o"), ("second-order", "s"), ("Adam", "^")):
            names = [name for name in taken if name.startswith(f"{kind},") and name.endswith(method)]
            label = f"{kind}, {method}"
            color = "tab:blue" if kind == "unlearned" else "tab:orange"
            axes.plot([taken[n] for n in names], [mean[n] for n in names], marker=marker, color=color, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds a network (one thread, in batches)")
    axes.set_ylabel("accuracy over the trained target's")
    axes.legend(fontsize="small")
    drawn.savefig(RESULTS / "frontier.png", dpi=120)


if __name__ == "__main__":
    main()
