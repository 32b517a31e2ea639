"""Work an hour of a CUDA device: zoo members, translator steps and translations, each beside a plain PyTorch loop.

The plain loops run in turn with ours, on the same device: one network after another with its images on the device, one
translator's step with autograd as it is, and one translation at a time. A figure is the median of the rounds. Written
estimates stand beside the measured seconds: a step of the zoo is taken to be limited by memory bandwidth.

    KT_RAY_DATA=... python benchmarks/gpu.py

Without a CUDA device it says so and ends with exit status 0; `--device cpu` runs it all on the processor.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common.results import RESULTS, write
from common.timing import in_turn, medians
from torch.nn.functional import cross_entropy

from kt_ray.config import DatasetConfig, MemberCounts, PhaseConfig, RecipeConfig, TrialConfig
from kt_ray.data import LabelledImages, as_float, load_dataset
from kt_ray.networks import PaperArchitecture
from kt_ray.translation.training import TranslatorTraining
from kt_ray.translation.transplants import translate
from kt_ray.zoo.members import members_of
from kt_ray.zoo.training.members import Plan, train_members
from kt_ray.zoo.untrained import untrained_zoo

ARCHITECTURE = PaperArchitecture("basic_to_simple")
BATCH = 128
PHASE = PhaseConfig(epochs=1, batch_size=BATCH)
RECIPE = RecipeConfig(source=PHASE, target=PHASE)
BYTES_PER_SECOND = {"NVIDIA H100": 3.35e12, "NVIDIA H200": 4.8e12}  # as their makers state


def plain_member(data: LabelledImages, device: str) -> None:
    """Train a source and its target as one would by hand: modules, SGD, autograd through the whole network."""
    images, labels = data.images, data.labels
    network = ARCHITECTURE.source_network().to(device)
    for phase in ("source", "target"):
        if phase == "target":
            network.eval().requires_grad_(False)
            network.block = ARCHITECTURE.target_block().to(device)
        optimizer = torch.optim.SGD([value for value in network.parameters() if value.requires_grad], 0.01, 0.9)
        for rows in torch.randperm(len(data), device=device).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(network(as_float(images[rows])), labels[rows]).backward()
            optimizer.step()


def trial(steps: int) -> TrialConfig:
    """An axial transformer with a loss on what its blocks do, as the bundled translators are trained."""
    return TrialConfig.model_validate(
        {
            "translator": {"family": "axial_transformer", "statistics": True},
            "loss": {"weight_mse": 0, "head_input": 0.3, "kl": 1, "images": 16},
            "training": {"epochs": 1_000, "steps_per_epoch": steps, "batch_size": 64},
        }
    )


def plain_translations(training: TranslatorTraining, count: int) -> None:
    """Translate `count` members one by one."""
    rows = training.translator.read({name: value[:count] for name, value in training.sites[0].members.items()})
    with torch.no_grad():
        for row in range(count):
            training.translator({name: value[row : row + 1] for name, value in rows.items()})


def waiting(device: str, work: Callable[[], Any]) -> Callable[[], Any]:
    """Return `work` that ends when the device has done it."""

    def measured() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    return measured


def measure(device: str, images: int, members: int, steps: int, rounds: int, blocks: int = 64) -> dict[str, Any]:
    """Return the medians of all loops; `blocks` are trained on at a step of a translator, and as many translated."""
    dataset = load_dataset(DatasetConfig(name="mnist5k", train_images=images, selection_images=256))
    zoo = untrained_zoo(ARCHITECTURE, MemberCounts(train=blocks, selection=4, test=blocks))
    training = TranslatorTraining(trial(steps), zoo, dataset, device)
    data, many = dataset.train.to(device), members_of(0, MemberCounts(train=members, selection=1, test=1))[:members]
    plan, held = Plan("grouped", "grouped", members, counter_draws=True), zoo.where("test")
    recorded = dataclasses.replace(plan, recorded=device == "cuda")
    works = {
        "zoo": lambda: train_members(many, RECIPE, ARCHITECTURE, dataset, device, recorded),
        "zoo, launched": lambda: train_members(many, RECIPE, ARCHITECTURE, dataset, device, plan),
        "zoo, plain": lambda: plain_member(data, device),
        "steps": training.run_epoch,
        "translations": lambda: translate(training.translator, held),
        "translations, plain": lambda: plain_translations(training, len(held)),
    }
    works = {name: waiting(device, work) for name, work in works.items()}
    in_turn(works, 1)  # compiles, allocates
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken = medians(in_turn(works, rounds))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    zoo_steps = 2 * -(-images // BATCH)
    activations = 4 * BATCH * 16 * ARCHITECTURE.network.channels * 14 * 14  # about 16 maps read or written a step
    rate = next((rate for name, rate in BYTES_PER_SECOND.items() if name in _name(device)), None)
    return {
        "device": _name(device),
        "members_at_once": members,
        "members_per_hour": 3600 * members / taken["zoo"],
        "replayed_over_launched": taken["zoo, launched"] / taken["zoo"],
        "plain_members_per_hour": 3600 / taken["zoo, plain"],
        "seconds_of_a_member_step": taken["zoo"] / members / zoo_steps,
        "estimated_seconds_of_a_member_step": activations / rate if rate else None,
        "translator_steps_per_second": steps / taken["steps"],
        "translations_per_second": len(held) / taken["translations"],
        "plain_translations_per_second": len(held) / taken["translations, plain"],
        "peak_memory_gib": peak,
        "seconds": taken,
    }


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "the processor"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--members", type=int, default=512)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured (`--device cpu` measures the processor)")
        return
    found = measure(arguments.device, arguments.images, arguments.members, arguments.steps, arguments.rounds)
    headline = {
        "zoo_speedup": found["members_per_hour"] / found["plain_members_per_hour"],
        "members_per_hour": found["members_per_hour"],
        "translator_steps_per_second": found["translator_steps_per_second"],
        "translations_speedup": found["translations_per_second"] / found["plain_translations_per_second"],
    }
    rows = [f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in headline.items()]
    table = "\n".join([f"On {found['device']}:", "", "| figure | |", "|---|---|", *rows])
    print(table)
    write("gpu", headline, found, [0], table, arguments.results)


if __name__ == "__main__":
    main()
