"""Studies of students: teacher and paraphrasers are made once, then one student is trained, or many by a search."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kt_ray.config import DistillConfig
from kt_ray.data import Dataset
from kt_ray.distillation.cache import Cache
from kt_ray.distillation.distill import Distillation, conclude, distill, load_student
from kt_ray.distillation.stages import Progress, Report, Stages
from kt_ray.distillation.task import Shared, StudentTask, choices, given_teachers, prepare
from kt_ray.jobs.device import use_device
from kt_ray.jobs.remote import run_remotely
from kt_ray.networks import State
from kt_ray.search.storage import open_storage
from kt_ray.search.study import SearchStudy
from kt_ray.studies.console import StudyConsole
from kt_ray.studies.study_file import stored_config
from kt_ray.studies.study_task import Best, Demand, Result, StudyTask
from kt_ray.tracking.promotion import Measured
from kt_ray.tracking.runs import STUDY_ID
from kt_ray.tracking.tracker import Tracker

if TYPE_CHECKING:
    from kt_ray.studies.conclusion import Conclusion
    from kt_ray.translation.evaluation import Evaluation


@dataclass
class DistillationStudy(StudyTask):
    """A study that trains a student, or searches the space of students."""

    makes = "student"
    selected_on = "images"

    config: DistillConfig
    _made: Distillation | None = None
    _shared: str = ""

    @property
    def demands(self) -> Mapping[str, Demand]:
        return super().demands if self.config.space else {}

    def try_batch(self, dataset: Dataset) -> tuple[int, float]:
        """Check every listed choice, then train one batch with a teacher that nobody trained."""
        stages = Stages(Cache(Path()), dataset)
        for trial in choices(self.config):
            stages.check(trial)
        metrics = stages.try_batch(self.config.trial)
        return int(metrics["parameters"]), metrics["loss"]

    def unchanged(self) -> bool:
        """Return whether the last run trained this base trial on these images: only a search compares them itself."""
        config, last = self.config, stored_config(self.config.name, self.workspace)
        same = isinstance(last, DistillConfig) and (last.trial, last.dataset) == (config.trial, config.dataset)
        return same or bool(config.space)

    def places(self, conclusion: Conclusion) -> Mapping[str, str]:
        return {"student": conclusion.file}

    def begin(self, dataset: Dataset, tracker: Tracker, console: StudyConsole) -> str:
        """Open the study's MLflow run, which has the losses of teacher and paraphrasers too."""
        super().begin(dataset, tracker, console)
        config = self.config
        identity = {}
        if config.space:
            identity = {STUDY_ID: SearchStudy(config, open_storage(self.workspace.study_storage)).identity}
        params = {"method": config.method.name, "dataset": dataset.name}
        self.run = tracker.study_run(config.name, params, identity)
        # Every node of a cluster sees the checkpoints' directory; studies share teachers and paraphrasers.
        cache = Cache(Path(self.workspace.checkpoints("distillation")))
        gpu = torch.cuda.is_available() and (not config.space or config.search.resources.gpus > 0)
        self.stages = Stages(cache, dataset, use_device("cuda" if gpu else "cpu"), self._report)
        return f"a student of {config.teacher.network.family} by {config.method.name} on {dataset.name}" + (
            f", {config.search.trials} trials" if config.space else ""
        )

    def _report(self, progress: Progress) -> None:
        self.console.fitting(progress)
        stage = progress.stage.replace(" ", "_")
        metrics = {f"{stage}.{name}": value for name, value in progress.metrics.items()}
        self.tracker.log(self.run, metrics, progress.epoch)

    def prepare(self, build: bool) -> StudentTask:
        """Train, or read, the teacher and the paraphrasers that the space can ask for, where a trial would run."""
        demand = self.demands["trials"]
        untested = dataclasses.replace(self.dataset, test=self.dataset.test.take(slice(0)))
        given = given_teachers(self.config, self.stages)
        stages = dataclasses.replace(self.stages, dataset=untested, report=None, given=given)
        with self.tracker.ending(self.run):
            demand.fitting()
            shared = run_remotely(_prepare, demand.amounts, demand.labels, self._report, self.config, stages)
        task = StudentTask(shared, self.dataset)
        self.console.settle()
        self._shared = task.fingerprint
        return task

    def train_alone(self) -> Best:
        directory = self.workspace.study_directory(self.config.name)
        with self.tracker.ending(self.run):
            made = distill(self.config.trial, self.stages, directory)
        self.console.settle()
        self._made = made
        return Best(0, made.selection_accuracy, {}, made.student, self.run, self.run, 1)

    @property
    def fingerprint(self) -> str:
        """The hash of images, teacher and paraphrasers; of the images if one student was trained alone."""
        return self._shared or self.dataset.fingerprint

    @property
    def measured_on(self) -> str:
        return self.dataset.fingerprint

    def measure(self, file: Path, previous: Evaluation | Distillation | None) -> Result:
        """Classify the test images with teacher and student."""
        best = load_student(file)
        found = self._made or previous
        if not isinstance(found, Distillation):
            found = conclude(self.stages, best.config, best.network, best.facts, file)
        images, _ = next(self.dataset.test.batches(2))
        name, accuracy = self.config.model_name, found.rows[-1].accuracy
        return Result(
            evaluation=found,
            measured=Measured(
                on="dataset",
                fingerprint=self.dataset.fingerprint,
                protocol=f"{len(self.dataset.selection)} selection images of {self.dataset.name}",
                selection=found.selection_accuracy,
                test=accuracy,
            ),
            module=Classifier(best.network),
            example={"images": images},
            card=f"# {name}: student by {found.method} on {self.dataset.name}\n\n{found.to_markdown()}\n",
            metrics={"test_accuracy": accuracy},
            trained={row.name: row.accuracy for row in found.rows},
        )


def _prepare(device: str, report: Report, config: DistillConfig, stages: Stages) -> Shared:
    return prepare(config, dataclasses.replace(stages, device=device, report=report))


class Classifier(nn.Module):
    """A student as the registry takes models: `images` [N, C, H, W] in [0, 1] → `logits` [N, classes]."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, state: State) -> State:
        logits: Tensor = self.student(state["images"])
        return {"logits": logits}
