"""One table of Knowledge Translation's MNIST pair: what each way to the small block costs and gives."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kt_ray.config import (
    ClassifierConfig,
    DatasetConfig,
    DistillTrialConfig,
    FitConfig,
    FTOptions,
    MethodConfig,
    ParaphraserConfig,
    TeacherConfig,
)
from kt_ray.data import Dataset, load_dataset
from kt_ray.distillation.cache import Cache
from kt_ray.distillation.distill import trained_student
from kt_ray.distillation.methods import Method
from kt_ray.distillation.stages import Stages, run_resumed
from kt_ray.distillation.training import StudentTraining, accuracy, no_teaching
from kt_ray.networks import stacked
from kt_ray.networks.cost import parameter_count
from kt_ray.translators.checkpoint import load_translator

Row = dict[str, Any]


class FrozenAround(nn.Module):
    """A network of which only the block is trained; stem and head stay frozen, in evaluation mode (the paper's)."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.network = network
        network.stem.requires_grad_(False)
        network.head.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenAround:
        super().train(mode)
        self.network.stem.eval()
        self.network.head.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def mnist_table(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Rows of source, trained target, students by FT, KD and neither, and the translated block; and them as text."""
    dataset = load_dataset(DatasetConfig(name="mnist", train_images=arguments.train_images))
    fit = FitConfig(
        epochs=arguments.mnist_epochs, learning_rate=0.01, weight_decay=0, schedule="constant", crop=0, flip=True
    )  # the recipe of a zoo's member
    stages = Stages(Cache(arguments.directory / "mnist"), dataset, arguments.device)
    test = dataset.test.to(arguments.device)

    source_config = TeacherConfig(network=ClassifierConfig(family="source"), training=fit)
    source = stages.teacher(source_config)
    rows = [row("source network", source.module, dataset, source.facts, test)]

    target = stages.network(ClassifierConfig(family="target"), 0)
    parts = {name: value for name, value in source.module.state_dict().items() if not name.startswith("block.")}
    target.load_state_dict(parts, strict=False)
    frozen = FrozenAround(target)
    training = StudentTraining(frozen, Method({}, (), ()), no_teaching, fit, dataset, device=arguments.device)
    facts = run_resumed(training, fit.epochs, arguments.directory / "mnist" / "target.safetensors", "target", None)
    rows.append(row("trained target block (stem and head the source's)", frozen, dataset, facts, test))

    for name in ("none", "kd", "ft"):
        config = DistillTrialConfig(
            teacher=source_config,
            paraphraser=ParaphraserConfig(training=fit.model_copy(update={"epochs": 1})),
            student=ClassifierConfig(family="target"),
            method=MethodConfig(name=name, ft=FTOptions(layers=("block",))),
            training=fit,
        )
        student, facts = trained_student(stages, config)
        extra = {"none": "no teacher", "kd": "KD student", "ft": "FT student"}[name]
        rows.append(row(f"small network from scratch, {extra}", student, dataset, facts, test))

    if arguments.translator:
        rows.append(translated(arguments.translator, source.module, target, dataset, test))
    settings = {"epochs": fit.epochs, "training_images": len(dataset.train), "rows": rows}
    return settings, as_markdown(rows, fit.epochs, arguments.translator)


def row(name: str, network: nn.Module, dataset: Dataset, facts: dict[str, Any], test: Any) -> Row:
    """A row of the table. The teacher's own training is not counted in its students' rows."""
    return {
        "name": name,
        "accuracy": accuracy(network, test),
        "parameters": parameter_count(network),
        "images_seen": facts["images_seen"],
        "seconds": facts["seconds"],
    }


def translated(path: Path, source: nn.Module, target: nn.Sequential, dataset: Dataset, test: Any) -> Row:
    """The source with its block translated: no image seen, besides those of the translator's own zoo."""
    translator = load_translator(path).translator
    blocks = stacked.stack([stacked.part(source.state_dict(), "block")])
    start = time.perf_counter()
    with torch.no_grad():
        small = translator(blocks)
    seconds = time.perf_counter() - start
    target.block.load_state_dict({name: value[0] for name, value in small.items()})
    facts = {"images_seen": 0, "seconds": seconds}
    return row("translated block (stem and head the source's)", target, dataset, facts, test)


def as_markdown(rows: list[Row], epochs: int, translator: Path | None) -> str:
    """The rows as a table."""
    lines = [
        "",
        "",
        f"MNIST, the pair basic_to_simple, {epochs} epochs each, one seed, hyper-parameters of the literature (not "
        "tuned here). A student's row does not count its teacher's training, nor a translated block's its zoo's.",
        "",
        "| network | test accuracy | parameters | training images seen | seconds |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {entry['name']} | {100 * entry['accuracy']:.2f} | {entry['parameters']:,} | {entry['images_seen']:,} | "
        f"{entry['seconds']:.3g} |"
        for entry in rows
    ]
    if translator is None:
        lines += ["", "No translated block: no `--translator` was given."]
    return "\n".join(lines)
