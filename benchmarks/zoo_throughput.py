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
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from common.plain import PILImages
from common.results import write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import transforms

from kt_ray.config import DatasetConfig, MemberCounts, RecipeConfig
from kt_ray.data import Dataset, LabelledImages, load_dataset
from kt_ray.networks import PaperArchitecture
from kt_ray.zoo.members import members_of
from kt_ray.zoo.recipe import Order, epoch_of
from kt_ray.zoo.training.members import train_members
from kt_ray.zoo.training.objectives import Fused
from kt_ray.zoo.training.optimizers import Optimizer, Parameters
from kt_ray.zoo.training.stacking import fresh

ARCHITECTURE = PaperArchitecture("basic_to_simple")
PAPER = RecipeConfig()
BATCH = 128
PHASES = ("source", "target")
PROCESSES = 2


def plain_network(phase: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network of a phase as the paper trains it, in the target phase its block alone, and the optimiser."""
    network = ARCHITECTURE.source_network()
    if phase == "target":
        network.eval().requires_grad_(False)
        network.block = ARCHITECTURE.target_block()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return network, torch.optim.SGD(trained, 0.01, 0.9)


class PlainLoop:
    """The paper's way: loader processes, nn.Module, torch.optim.SGD, autograd through the whole network."""

    def __init__(self, data: LabelledImages) -> None:
        torch.manual_seed(0)
        self.images = PILImages(data, transforms.Compose([transforms.RandomHorizontalFlip(), transforms.ToTensor()]))

    def segment(self, phase: str, steps: int, workers: int = 0) -> tuple[float, float]:
        """Wall and own processor seconds of a step; the first two steps, where workers start, are not timed."""
        network, optimizer = plain_network(phase)
        loader = DataLoader(self.images, BATCH, shuffle=True, num_workers=workers)
        batches = iter(loader)
        for _ in range(2):
            self._step(network, optimizer, batches)
        began, before = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self._step(network, optimizer, batches)
        return (time.perf_counter() - began) / steps, (time.process_time() - before) / steps

    @staticmethod
    def _step(network: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[list[Tensor]]) -> None:
        images, labels = next(batches)
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()


class Ours:
    """The trainer of this project in one process."""

    def __init__(self, data: LabelledImages, seed: int) -> None:
        self.data, self.seed = data, seed
        state = fresh(ARCHITECTURE.source_network, [seed])
        frozen = {name: value for name, value in state.items() if not name.startswith("block.")}
        self.parameters = {"source": Parameters(state), "target": Parameters(fresh(ARCHITECTURE.target_block, [seed]))}
        self.objectives: dict[str, Fused] = {"source": Fused(ARCHITECTURE, data)}
        self.some = data.take(slice(0, 40 * BATCH))
        self.objectives["target"] = Fused(ARCHITECTURE, frozen, self.some, variants=2)
        self.frozen = frozen

    def segment(self, phase: str, steps: int) -> tuple[float, float]:
        """Wall and processor seconds of a step; of "cache": of one image, mirrored too."""
        began, before = time.perf_counter(), time.process_time()
        if phase == "cache":
            Fused(ARCHITECTURE, self.frozen, self.some, variants=2)
            steps = len(self.some)
        else:
            data = self.data if phase == "source" else self.some
            parameters, order = self.parameters[phase], Order(self.seed, len(data), PAPER)
            optimizer = Optimizer(parameters.theta, [getattr(PAPER, phase)], [1.0])
            draw = epoch_of([order], "cpu")
            for step in range(steps):
                batch = draw.batch(step * BATCH % (len(data) - BATCH), BATCH)
                optimizer.step(self.objectives[phase].gradient(parameters, batch), optimizer.scales[0])
        return (time.perf_counter() - began) / steps, (time.process_time() - before) / steps


def serve(connection: Connection, seed: int | None, config: DatasetConfig) -> None:
    """A process of one thread that answers (phase, steps, …) with the seconds of a step; the plain loop has no seed."""
    torch.set_num_threads(1)
    data = load_dataset(config).train
    runner: PlainLoop | Ours = PlainLoop(data) if seed is None else Ours(data, seed)
    for phase in (*PHASES, "cache") if seed is not None else ():
        runner.segment(phase, 2)  # compiles
    connection.send("ready")
    while (order := connection.recv()) is not None:
        connection.send(runner.segment(*order))


class Worker:
    """The other end of `serve`."""

    def __init__(self, seed: int | None, config: DatasetConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, seed, config))
        self.process.start()

    def stop(self) -> None:
        self.connection.send(None)
        self.process.join()


def together(workers: list[Worker], *order: Any) -> tuple[float, float]:
    """Wall and processor seconds of a step in each of several processes at once: their mean."""
    for worker in workers:
        worker.connection.send(order)
    answers = [worker.connection.recv() for worker in workers]
    return statistics.mean(wall for wall, _ in answers), statistics.mean(processor for _, processor in answers)


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
    write("zoo_throughput", headline, results, [0, 1, 2], table_of(results, headline))
    print(Path(__file__).parent / "results" / "zoo_throughput.md")


def table_of(results: dict[str, Any], headline: dict[str, float]) -> str:
    pairs, steps = results["pairs_per_hour"], results["ms_of_a_step"]
    lines = ["| | pairs an hour, 2 cores | ms a source step | ms a target step |", "|---|---|---|---|"]
    lines += [
        f"| {label} | {pairs[kind]:.1f} | {steps[kind]['source']:.2f} | {steps[kind]['target']:.2f} |"
        for kind, label in (
            ("plain", f"plain loop, {results['best_loader_workers']} loader workers"),
            ("ours", "kt_ray"),
        )
    ]
    lines.append("")
    lines += [f"- {name}: {value:.2f}" for name, value in headline.items()]
    if "equal_accuracy" in results:
        equal = results["equal_accuracy"]
        lines += ["", f"Recipes, {equal['members']} members, {equal['images']} training images:", ""]
        lines += ["| recipe | source accuracy | target accuracy | processor seconds |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {equal[name]['source_accuracy']:.4f} | {equal[name]['target_accuracy']:.4f} "
            f"| {equal[name]['processor_seconds']:.1f} |"
            for name in ("paper", "fast")
        ]
    if "full_pair_processor_seconds" in results:
        seconds = results["processor_seconds_of_a_pair"]
        lines += [
            "",
            f"Extrapolated, a pair takes {seconds:.1f} processor seconds; one trained whole took "
            f"{results['full_pair_processor_seconds']:.1f}.",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
