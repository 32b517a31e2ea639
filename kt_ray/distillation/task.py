"""Students as trials of a search: what they share is made before the search and travels through the object store."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from kt_ray.config import DistillConfig, DistillTrialConfig, Frozen, set_path
from kt_ray.data import Dataset
from kt_ray.distillation.cache import Cache, Made, fingerprint
from kt_ray.distillation.distill import STUDENT_FILE, save_student
from kt_ray.distillation.stages import Stages, Trained
from kt_ray.distillation.training import StudentTraining
from kt_ray.networks.checkpoint import Checkpoint

MADE_BEFORE = ("method.name", "paraphraser.rate", "method.ft.layers")


@dataclass(frozen=True)
class Shared:
    """The data that trials read: teacher and paraphrasers as `key/name` → tensor, and the directory of further ones.

    `directory` must be one that every node sees; a paraphraser that was not made before is trained there once.
    `given` are the teachers' checkpoints, whose files only the driver has to see.
    """

    directory: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    given: Mapping[str, Checkpoint] = field(default_factory=dict)

    def cache(self) -> Cache:
        """The cache that looks here first."""
        memory: dict[str, Made] = {}
        for key, facts in self.facts.items():
            prefix = f"{key}/"
            state = {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}
            memory[key] = (state, facts)
        return Cache(Path(self.directory), memory)


def prepare(config: DistillConfig, stages: Stages) -> Shared:
    """Train, or read, the teacher and every paraphraser that the choices of the space can ask for.

    Where the space searches the teacher, or the paraphraser by other than a list of rates and layers, trials make what
    they need themselves, once, in the shared directory. Raises ConfigError if a choice cannot be carried out.
    """
    needed: dict[str, Trained] = {}
    for trial in choices(config):
        stages.check(trial)
    if not any(path.startswith("teacher.") for path in config.space):
        for trial in choices(config):
            if trial.method.name == "none":
                continue
            teacher = stages.teacher(trial.teacher)
            needed[teacher.key] = teacher
            if any(path.startswith("paraphraser.") and path not in MADE_BEFORE for path in config.space):
                continue
            needed.update({made.key: made for made in stages.paraphrasers(teacher, trial).values()})
    tensors = {
        f"{key}/{name}": value.cpu() for key, made in needed.items() for name, value in made.module.state_dict().items()
    }
    facts = {key: made.facts for key, made in needed.items()}
    return Shared(str(stages.cache.directory), tensors, facts, stages.given)


def given_teachers(config: DistillConfig, stages: Stages) -> dict[str, Checkpoint]:
    """Read the checkpoints that the base trial and the space name as teachers.

    Raises CheckpointError if a file cannot be read.
    """
    teacher = config.trial.teacher
    searched = config.space.get("teacher.checkpoint")
    names = {teacher.checkpoint, *(searched.categorical or () if searched else ())}
    network = stages.network(teacher.network, 0)
    return {name: stages.checkpoint(name, network) for name in names if isinstance(name, str)}


def choices(config: DistillConfig) -> list[DistillTrialConfig]:
    """The base trial with every combination of the listed choices of method, rate and layers."""
    listed = {
        path: config.space[path].categorical or ()
        for path in MADE_BEFORE
        if path in config.space and config.space[path].categorical
    }
    trials = []
    for values in itertools.product(*listed.values()):
        content = config.trial.model_dump()
        for path, value in zip(listed, values, strict=True):
            set_path(content, path, value)
        trials.append(DistillTrialConfig.model_validate(content))
    return trials


@dataclass(frozen=True)
class StudentTask:
    """Students as a search's workers train them; see `kt_ray.search.task.Task`."""

    shared: Shared
    dataset: Dataset

    config: ClassVar[type[Frozen]] = DistillTrialConfig
    shares: ClassVar[str] = "teachers"
    code: ClassVar[tuple[str, ...]] = ("data", "distillation", "networks")

    @property
    def dataset_fingerprint(self) -> str:
        return self.dataset.fingerprint

    @property
    def fingerprint(self) -> str:
        """The hash of dataset, teacher and paraphrasers."""
        return fingerprint("students", self.dataset.fingerprint, sorted(self.shared.facts))

    def params(self) -> Mapping[str, Any]:
        return {"shared": len(self.shared.facts)}

    def prepared(self, device: str) -> StudentTask:
        """Return the task: teacher and paraphrasers are made before."""
        return self

    def training(self, trial: DistillTrialConfig, device: str) -> StudentTraining:
        return Stages(self.shared.cache(), self.dataset, device, given=self.shared.given).student(trial)

    def export(
        self, training: StudentTraining, trial: DistillTrialConfig, directory: Path, metrics: Mapping[str, float]
    ) -> None:
        facts = {"seconds": training.seconds, "images_seen": training.images_seen, **metrics}
        save_student(directory / STUDENT_FILE, training.student, trial, self.dataset, facts)
