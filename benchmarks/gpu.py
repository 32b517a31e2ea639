"""Work an hour of a CUDA device: zoo members, translator steps and translations, each beside a plain PyTorch loop.

The plain loops run in turn with ours, on the same device: one network after another with its images on the device, a
translator's step whose networks run one after another, and one translation at a time. A figure is the median of the
rounds. An estimate stands beside the seconds of a zoo's step: that of its memory traffic.

    KT_RAY_DATA=... python benchmarks/gpu.py

Without a CUDA device it says so and ends with exit status 0; `--device cpu` runs it all on the processor.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common.results import RESULTS, write
from common.timing import in_turn, medians
from torch.func import functional_call
from torch.nn.functional import cross_entropy, kl_div

from kt_ray.config import DatasetConfig, MemberCounts, PhaseConfig, RecipeConfig, TrialConfig
from kt_ray.data import LabelledImages, as_float, load_dataset
from kt_ray.networks import PaperArchitecture
from kt_ray.translation.training import TranslatorTraining
from kt_ray.translation.transplants import translate
from kt_ray.zoo.members import members_of
from kt_ray.zoo.training.members import Plan, train_members
from kt_ray.zoo.untrained import untrained_zoo

ARCHITECTURE = PaperArchitecture("basic_to_simple")
BUILDS = (ARCHITECTURE.source_network, ARCHITECTURE.target_network)
BATCH, IMAGES = 128, 16
PHASE = PhaseConfig(epochs=1, batch_size=BATCH)
RECIPE = RecipeConfig(source=PHASE, target=PHASE)
BYTES_OF_A_STEP = (74e6 + 54e6) / 2  # of source and target, as docs/how-to/gpus.md counts them
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
            "loss": {"weight_mse": 0, "head_input": 0.3, "kl": 1, "images": IMAGES},
            "training": {"epochs": 1_000, "steps_per_epoch": steps, "batch_size": 64},
        }
    )


def plain_step(training: TranslatorTraining, data: LabelledImages, blocks: int) -> None:
    """A translator's step as one would by hand: the networks of each block run as modules, one after another."""
    members = {name: value[:blocks] for name, value in training.sites[0].members.items()}
    images, model = as_float(data.images[:IMAGES]), copy.deepcopy(training.model).train()
    source, target = (build().to(data.images.device).eval() for build in BUILDS)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    written, loss = model(model.read(members)), torch.zeros((), device=images.device)
    for row in range(blocks):
        around = {name: value[row] for name, value in members.items() if name.startswith(("stem.", "head."))}
        block = {f"block.{name[7:]}": value[row] for name, value in members.items() if name.startswith("source.")}
        small = {f"block.{name}": value[row] for name, value in written.items()}
        with torch.no_grad():
            wanted = functional_call(source, around | block, (images,)).log_softmax(1)
        found = functional_call(target, around | small, (images,)).log_softmax(1)
        loss = loss + kl_div(found, wanted, log_target=True, reduction="batchmean")
    (loss / blocks).backward()
    optimizer.step()


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
        "step, plain": lambda: plain_step(training, data, blocks),
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
    rate = next((rate for name, rate in BYTES_PER_SECOND.items() if name in _name(device)), None)
    return {
        "device": _name(device),
        "members_at_once": members,
        "members_per_hour": 3600 * members / taken["zoo"],
        "replayed_over_launched": taken["zoo, launched"] / taken["zoo"],
        "plain_members_per_hour": 3600 / taken["zoo, plain"],
        "seconds_of_a_member_step": taken["zoo"] / members / zoo_steps,
        "estimated_seconds_of_a_member_step": BYTES_OF_A_STEP / rate if rate else None,
        "translator_steps_per_second": steps / taken["steps"],
        "plain_translator_steps_per_second": 1 / taken["step, plain"],
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
        "steps_speedup": found["translator_steps_per_second"] / found["plain_translator_steps_per_second"],
        "translations_speedup": found["translations_per_second"] / found["plain_translations_per_second"],
    }
    rows = [f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in headline.items()]
    table = "\n".join([f"On {found['device']}:", "", "| figure | |", "|---|---|", *rows])
    print(table)
    write("gpu", headline, found, [0], table, arguments.results)


if __name__ == "__main__":
    main()
