"""A distillation from end to end: teacher, paraphraser, student, and what each cost and gives on the test images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kt_ray.config import DistillTrialConfig
from kt_ray.data import Dataset
from kt_ray.distillation.cache import Made, fingerprint
from kt_ray.distillation.fitting import load_part, read_checkpoint, save_checkpoint
from kt_ray.distillation.networks import build_network
from kt_ray.distillation.stages import Stages, run_resumed
from kt_ray.distillation.training import accuracy
from kt_ray.errors import CheckpointError
from kt_ray.networks.cost import multiply_adds, parameter_count

STUDENT_FILE = "student.safetensors"


@dataclass(frozen=True)
class Row:
    """A network's size, its accuracy on the test images, and what training it took."""

    name: str
    accuracy: float
    parameters: int
    multiply_adds: int
    images_seen: int
    seconds: float


@dataclass(frozen=True)
class Distillation:
    """The result: the student's file, rows of teacher and student, the paraphrasers' facts by layer."""

    student: Path
    method: str
    rows: tuple[Row, ...]
    paraphrasers: dict[str, dict[str, Any]]
    selection_accuracy: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"student": str(self.student)}

    def to_markdown(self) -> str:
        lines = [
            "| network | test accuracy | parameters | multiply-adds | training images seen | seconds |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row.name} | {row.accuracy:.4f} | {row.parameters:,} | {row.multiply_adds:,} | {row.images_seen:,} | "
            f"{row.seconds:.1f} |"
            for row in self.rows
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class LoadedStudent:
    """A student as `load_student` finds it: in evaluation mode, for float images in [0, 1]."""

    network: nn.Module
    config: DistillTrialConfig
    image_shape: tuple[int, int, int]
    classes: int
    facts: dict[str, Any]


def distill(config: DistillTrialConfig, stages: Stages, output: Path) -> Distillation:
    """Train what `config` names, or take it from the cache, and write the student to `output`. Run again, it goes on.

    The test images are looked at here, once, after all training. Raises ConfigError or CheckpointError before anything
    is trained where layers, rate or the teacher's checkpoint do not fit.
    """
    stages.check(config)
    student, facts = trained_student(stages, config)
    path = output / STUDENT_FILE
    save_student(path, student, config, stages.dataset, facts)
    return conclude(stages, config, student, facts, path)


def conclude(
    stages: Stages, config: DistillTrialConfig, student: nn.Module, facts: Mapping[str, Any], path: Path
) -> Distillation:
    """Teacher and student on the test images, the student on the selection images too, if there are any.

    `facts` are of the student's training, maybe with other images; `path` is its file.
    """
    rows = []
    paraphrasers: dict[str, dict[str, Any]] = {}
    if config.method.name != "none":
        teacher = stages.teacher(config.teacher)
        rows.append(_row("teacher", teacher.module, teacher.facts, stages))
        paraphrasers = {layer: made.facts for layer, made in stages.paraphrasers(teacher, config).items()}
    rows.append(_row("student", student, facts, stages))
    selected = stages.selected(student.to(stages.device)).get("accuracy")
    return Distillation(path, config.method.name, tuple(rows), paraphrasers, selected)


def trained_student(stages: Stages, config: DistillTrialConfig) -> tuple[nn.Module, dict[str, Any]]:
    """The student, trained to the end or taken from the cache, and the facts of its training."""
    content = config.model_dump(mode="json")
    methods = config.method.name.split("+")
    deciding: dict[str, Any] = {name: content[name] for name in ("seed", "student", "training")}
    deciding["method"] = {name: content["method"].get(name) for name in methods}
    if config.method.name != "none":
        deciding["teacher"] = stages.teacher(config.teacher).key
    if "ft" in methods:
        deciding["paraphraser"] = content["paraphraser"]
    key = fingerprint("student", deciding, stages.dataset.fingerprint)

    def train(progress: Path) -> Made:
        training = stages.student(config)
        facts = run_resumed(training, config.training.epochs, progress, "student", stages.report)
        return training.student.state_dict(), facts | stages.selected(training.student)

    state, facts = stages.cache.get(key, train)
    student = stages.network(config.student, config.seed)
    load_part(student, {"state": state}, "state", stages.cache.directory / f"{key}.safetensors")
    return student.to(stages.device).eval(), facts


def _row(name: str, network: nn.Module, facts: Mapping[str, Any], stages: Stages) -> Row:
    return Row(
        name,
        accuracy(network.to(stages.device), stages.dataset.test.to(stages.device)),
        parameter_count(network),
        multiply_adds(network, stages.dataset.image_shape),
        int(facts.get("images_seen", 0)),
        float(facts.get("seconds", 0.0)),
    )


def save_student(
    path: Path,
    student: nn.Module,
    config: DistillTrialConfig,
    dataset: Dataset,
    training: Mapping[str, Any],
) -> None:
    """One safetensors file that `load_student` makes the network from; `training` is facts of its training."""
    state: dict[str, Tensor] = {name: value.cpu() for name, value in student.state_dict().items()}
    facts = {
        "training": dict(training),
        "config": config.model_dump(mode="json"),
        "image_shape": list(dataset.image_shape),
        "classes": dataset.classes,
    }
    save_checkpoint(path, {"student": state}, facts)


def load_student(path: Path) -> LoadedStudent:
    """The student that `save_student` wrote. Raises CheckpointError if `path` is something else."""
    parts, facts = read_checkpoint(path)
    try:
        trial = DistillTrialConfig.model_validate(json.loads(json.dumps(facts["config"])))
        channels, height, width = (int(size) for size in facts["image_shape"])
        classes = int(facts["classes"])
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is not a student of `kt-ray distill`: {reason}") from None
    network = build_network(trial.student, (channels, height, width), classes, trial.seed)
    load_part(network, parts, "student", path)
    return LoadedStudent(network.eval(), trial, (channels, height, width), classes, dict(facts.get("training", {})))
