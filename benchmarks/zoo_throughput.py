"""Pairs an hour at the paper's protocol: this project's trainer against a plain loop written as the paper trained.

The plain loop is torchvision's: PIL images through transforms and a DataLoader, one network at a time, every step
through the whole network, in the loader-worker setting that is best for it. Ours is two processes of one thread, as
two actors are. Both have the same two cores; segments alternate, and a figure is the median over the rounds. Time is
extrapolated from steps to 10 + 10 epochs of all training images, with the making of cached stem activations in it.
Of ours, processor time is kept beside wall time; of the plain loop it would leave its loader workers out.

    KT_RAY_DATA=... python benchmarks/zoo_throughput.py
    KT_RAY_DATA=... python benchmarks/zoo_throughput.py --equal-members 4 --full-pair
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common.markdown import bullets, table
from common.results import write
from common.zoo_steps import ARCHITECTURE, BATCH, PAPER, PHASES
from common.zoo_workers import Worker, together

from kt_ray.config import DatasetConfig, MemberCounts, RecipeConfig
from kt_ray.data import Dataset, load_dataset
from kt_ray.zoo.members import members_of
from kt_ray.zoo.training.members import train_members

PROCESSES = 2


def of_a_pair(seconds: dict[str, float], images: int) -> float:
    """Seconds of a pair from those of a step of each phase and of an image cached."""
    steps = 10 * -(-images // BATCH)
    return steps * (seconds["source"] + seconds["target"]) + seconds.get("cache", 0.0) * images


def measure(config: DatasetConfig, images: int, rounds: int, steps: int) -> dict[str, Any]:
    """Medians over alternating rounds; the best loader setting is chosen by one round more."""
    plain, ours = Worker(None, config), [Worker(seed, config) for seed in range(PROCESSES)]
    for worker in (plain, *ours):
        worker.connection.recv()
    first = {count: sum(together([plain], phase, steps, count)[0] for phase in PHASES) for count in (0, 1, 2)}
    best = min(first, key=lambda count: first[count])
    samples: dict[str, list[dict[str, tuple[float, float]]]] = {"plain": [], "ours": [], "one": []}
    for _ in range(rounds):
        samples["plain"].append({phase: together([plain], phase, steps, best) for phase in PHASES})
        samples["ours"].append({phase: together(ours, phase, 4 * steps) for phase in (*PHASES, "cache")})
        samples["one"].append({phase: together(ours[:1], phase, 4 * steps) for phase in (*PHASES, "cache")})
    for worker in (plain, *ours):
        worker.stop()

    def pair(kind: str, clock: int) -> list[float]:
        return [of_a_pair({phase: times[clock] for phase, times in sample.items()}, images) for sample in samples[kind]]

    wall = {kind: pair(kind, 0) for kind in samples}
    steps_ms = {
        kind: {phase: 1000 * statistics.median(sample[phase][0] for sample in samples[kind]) for phase in PHASES}
        for kind in ("plain", "ours")
    }
    return {
        "best_loader_workers": best,
        "seconds_of_a_step_by_workers": first,
        "pairs_per_hour": {
            "plain": 3600 / statistics.median(wall["plain"]),
            "ours": PROCESSES * 3600 / statistics.median(wall["ours"]),
            "ours_one_process": 3600 / statistics.median(wall["one"]),
        },
        "speedup_of_each_round": [PROCESSES * p / o for p, o in zip(wall["plain"], wall["ours"], strict=True)],
        "two_processes_over_one": [PROCESSES * a / b for a, b in zip(wall["one"], wall["ours"], strict=True)],
        "processor_seconds_of_a_pair": statistics.median(pair("ours", 1)),
        "ms_of_a_step": steps_ms,
    }


def equal_accuracy(dataset: Dataset, members: int) -> dict[str, Any]:
    """Mean accuracies (selection images) and processor seconds of members by the paper's and the fast recipe."""
    chosen = members_of(1, MemberCounts(train=members, selection=1, test=1))[2:]
    found: dict[str, Any] = {}
    for name in ("fast", "paper"):
        recipe, began = RecipeConfig.model_validate(name), time.process_time()
        _, rows = train_members(chosen, recipe, ARCHITECTURE, dataset)
        found[name] = {
            "processor_seconds": (time.process_time() - began) / members,
            "source_accuracy": statistics.mean(rows["source_accuracy"].to_pylist()),
            "target_accuracy": statistics.mean(rows["target_accuracy"].to_pylist()),
            "recipe": recipe.model_dump(mode="json"),
        }
        print(name, found[name], flush=True)
    found["time_ratio"] = found["paper"]["processor_seconds"] / found["fast"]["processor_seconds"]
    found["images"], found["members"] = len(dataset.train), members
    return found


def full_pair(dataset: Dataset) -> float:
    """Processor seconds of one whole pair at the paper's protocol, to check the extrapolation."""
    began = time.process_time()
    train_members(members_of(2, MemberCounts(train=1))[:1], PAPER, ARCHITECTURE, dataset)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist", choices=["mnist", "mnist5k", "fashion_mnist"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="of the plain loop in a round; ours does four times that")
    parser.add_argument("--equal-members", type=int, default=0, help="members of the comparison of recipes; 0: none")
    parser.add_argument(
        "--equal-images", type=int, default=None, help="training images of that comparison; all if unset"
    )
    parser.add_argument("--full-pair", action="store_true", help="check the extrapolation by one whole pair")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    config = DatasetConfig(name=options.dataset, selection_images=1000)
    dataset = load_dataset(config)
    images = 60_000  # the paper's, whatever is at hand
    results = measure(config, images, options.rounds, options.steps)
    headline = {
        "speedup": statistics.median(results["speedup_of_each_round"]),
        "actors_1_to_2": statistics.median(results["two_processes_over_one"]),
    }
    if options.equal_members:
        some = load_dataset(config.model_copy(update={"train_images": options.equal_images}))
        equal = results["equal_accuracy"] = equal_accuracy(some, options.equal_members)
        reached = all(equal["fast"][key] >= equal["paper"][key] for key in ("source_accuracy", "target_accuracy"))
        equal["reached"] = reached
        if reached:
            headline["equal_accuracy_speedup"] = headline["speedup"] * equal["time_ratio"]
    if options.full_pair:
        results["full_pair_processor_seconds"] = full_pair(dataset)
    write("zoo_throughput", headline, results, [0, 1, 2], text_of(results, headline))
    print(Path(__file__).parent / "results" / "zoo_throughput.md")


def text_of(results: dict[str, Any], headline: dict[str, float]) -> str:
    """Return the tables, with the headline between them."""
    kinds = {"plain": f"plain loop, {results['best_loader_workers']} loader workers", "ours": "kt_ray"}
    rows = [
        {"": label, "pairs an hour, 2 cores": f"{results['pairs_per_hour'][kind]:.1f}"}
        | {f"ms a {phase} step": f"{value:.2f}" for phase, value in results["ms_of_a_step"][kind].items()}
        for kind, label in kinds.items()
    ]
    parts = [table(rows), bullets(headline)]
    if "equal_accuracy" in results:
        equal = results["equal_accuracy"]
        parts.append(f"Recipes, {equal['members']} members, {equal['images']} training images:")
        recipes = [
            {"recipe": name}
            | {f"{part} accuracy": f"{equal[name][f'{part}_accuracy']:.4f}" for part in PHASES}
            | {"processor seconds": f"{equal[name]['processor_seconds']:.1f}"}
            for name in ("paper", "fast")
        ]
        parts.append(table(recipes))
    if "full_pair_processor_seconds" in results:
        extrapolated, whole = results["processor_seconds_of_a_pair"], results["full_pair_processor_seconds"]
        parts.append(
            f"Extrapolated, a pair takes {extrapolated:.1f} processor seconds; one trained whole took {whole:.1f}."
        )
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
