"""Training the paper's mixer: this project's loop against a plain one, in samples a second.

The plain loop trains as the paper did: every sample is two `.pth` files, read by `torch.load` in a DataLoader, and
their kernels are masked, given noise and stacked one sample at a time. Ours indexes stacked tensors. Both train the
same network by the same loss and optimiser on the same (untrained) members. Rounds alternate; a figure is the median.

And what a report costs a trial of `benchmarks/translation.py`: of 500 steps with two reports, the share of translating
the selection members (which with refinement takes hundreds of steps each) and of counting their right answers.

    python benchmarks/translator_training.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common.markdown import table
from common.memory import peak_mib
from common.plain import forever
from common.plain_translating import MASK, NOISE, Pairs, write_pairs
from common.results import write
from common.timing import in_turn, medians
from torch import nn
from torch.utils.data import DataLoader
from translation_arms import settings_of
from translation_arms import trial as arm_trial

from kt_ray.config import DatasetConfig, MemberCounts, TrialConfig, validate
from kt_ray.data import load_dataset
from kt_ray.networks import PaperArchitecture, State
from kt_ray.translation.losses import weight_mse
from kt_ray.translation.training import TranslatorTraining
from kt_ray.translation.transplants import translate
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.untrained import untrained_zoo

ARMS = ("faithful", "+ varied and swapped units", "+ three starts")
REPORTED = ("translating", "counting")  # the parts of a report
ARM_STEPS, ARM_REPORTS, ARM_SELECTION = 500, 2, 16


def trial(size: str, batch: int, steps: int) -> TrialConfig:
    """The paper's translator, loss and augmentation."""
    content = {
        "translator": {"family": "mixer", "batch_norm": "dropped", "output": "direct", "mixer": {"size": size}},
        "augmentation": {
            "mask": {"probability": MASK, "sides": "both"},
            "noise": {"std": NOISE, "sides": "both"},
        },
        "training": {
            "epochs": 1_000,
            "steps_per_epoch": steps,
            "batch_size": batch,
            "optimizer": "adam",
            "schedule": "constant",
        },
    }
    return validate(TrialConfig, content)


def plain_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[tuple[State, State]], steps: int
) -> None:
    """`steps` of the plain loop."""
    for _ in range(steps):
        source, target = next(batches)
        step(model, optimizer, source, target)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, source: State, target: State) -> None:
    """Forward, loss, backward, update."""
    loss = weight_mse(model(source), target).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="processes of the plain loop's DataLoader")
    parser.add_argument("--sizes", nargs="+", default=["paper", "tiny"], help="mixer presets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    architecture = PaperArchitecture("basic_to_simple")
    dataset = load_dataset(DatasetConfig(name="mnist5k", train_images=500, selection_images=500))
    zoo = untrained_zoo(architecture, MemberCounts(train=arguments.members, selection=8, test=1))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(zoo.where("train"), Path(folder))
        for size in arguments.sizes:
            results[size] = measure(size, zoo, dataset, Path(folder), arguments)
    paper = results[arguments.sizes[0]]
    headline = {"speedup": paper["speedup"], "model_time_share": paper["model_time_share"]}
    rates = {
        "ours, samples/s": "ours_samples_per_second",
        "plain loop": "plain_samples_per_second",
        "speedup": "speedup",
    }
    shares = {
        "share of time in the model": "model_time_share",
        "the plain loop's": "plain_model_time_share",
        "evaluation's share of 100 steps and a report": "evaluation_share",
    }
    sizes = [
        {"mixer": size}
        | {head: f"{row[name]:.1f}" for head, name in rates.items()}
        | {head: f"{row[name]:.3f}" for head, name in shares.items()}
        for size, row in results.items()
    ]
    reports = {name: report_shares(name, arguments.rounds) for name in ARMS}
    of_reports = [
        {"arm": name, "training, seconds": f"{row['training']:.1f}"}
        | {kind: f"{row[kind]:.2f}" for kind in REPORTED}
        | {f"share of {kind}": f"{row[f'{kind}_share']:.3f}" for kind in REPORTED}
        for name, row in reports.items()
    ]
    text = f"{table(sizes)}\n\n{table(of_reports)}"
    peak = peak_mib() / 1024
    stacks = sum(value.numel() * value.element_size() for value in zoo.parameters.values()) / len(zoo) / 2**10
    results |= {"reports": reports, "peak_gib": peak, "kib_a_member": stacks}
    write("translator_training", headline, results, [0], text)
    print(text)


def report_shares(name: str, rounds: int) -> dict[str, float]:
    """Seconds of a trial of the arm `name` and of its reports, and the reports' shares."""
    dataset = load_dataset(DatasetConfig(name="mnist5k", selection_images=2000))
    zoo = untrained_zoo(PaperArchitecture("basic_to_simple"), MemberCounts(train=64, selection=ARM_SELECTION, test=1))
    config = arm_trial(settings_of(name), 0, 4 * rounds, 32, rounds, "small")
    training = TranslatorTraining(config, zoo, dataset)
    generator = torch.Generator().manual_seed(0)
    training._train(generator)  # warm
    blocks: State = {}
    works = {
        "training": lambda: training._train(generator),
        "translating": lambda: blocks.update(translate(training.translator, training.sites[0].transplants.zoo)),
        "counting": lambda: training.sites[0].transplants.accuracy(blocks),
    }
    row = medians(in_turn(works, rounds))
    row["training"] *= ARM_STEPS / training.steps_per_epoch
    row |= {kind: ARM_REPORTS * row[kind] for kind in REPORTED}
    whole = sum(row.values())
    return row | {f"{kind}_share": row[kind] / whole for kind in REPORTED}


def measure(size: str, zoo: Zoo, dataset: object, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Both loops with the mixer of `size`."""
    training = TranslatorTraining(trial(size, arguments.batch, arguments.steps), zoo, dataset)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        Pairs(folder, len(zoo.where("train"))), arguments.batch, shuffle=True, num_workers=arguments.workers
    )
    batches = forever(loader)
    model, optimizer = training.model, training.optimizer
    source = {name: value[: arguments.batch] for name, value in zoo.part("source").items()}
    target = {name: value[: arguments.batch] for name, value in zoo.part("target").items()}

    def alone() -> None:
        for _ in range(arguments.steps):
            step(model, optimizer, source, target)

    def ours() -> None:
        model.train()
        training._train(generator)

    works = {
        "ours": ours,
        "plain": lambda: plain_steps(model, optimizer, batches, arguments.steps),
        "model": alone,
        "evaluation": training.select,
    }
    model.train()
    alone()  # warm
    median = medians(in_turn(works, arguments.rounds))
    samples = arguments.batch * arguments.steps
    hundred = 100 / arguments.steps * median["ours"]
    return {
        "ours_samples_per_second": samples / median["ours"],
        "plain_samples_per_second": samples / median["plain"],
        "speedup": median["plain"] / median["ours"],
        "model_time_share": median["model"] / median["ours"],
        "plain_model_time_share": median["model"] / median["plain"],
        "evaluation_share": median["evaluation"] / (hundred + median["evaluation"]),
    }


if __name__ == "__main__":
    main()
