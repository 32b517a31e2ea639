"""The differences between studies of translators and of students; all else is in `runner` and `conclusion`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import nn

from kt_ray.data import Dataset
from kt_ray.distillation.distill import Distillation
from kt_ray.jobs.connection import fitting
from kt_ray.networks import State
from kt_ray.search.task import Task
from kt_ray.studies.console import StudyConsole
from kt_ray.studies.study_file import Config
from kt_ray.studies.workspace import Workspace
from kt_ray.tracking.promotion import Measured
from kt_ray.tracking.tracker import Input, Tracker
from kt_ray.translation.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kt_ray.studies.conclusion import Conclusion


@dataclass(frozen=True)
class Demand:
    """The resources that one of many takes of a node, and how many are asked for; None is as many as fit."""

    amounts: Mapping[str, float]
    labels: Mapping[str, str]
    count: int | None

    def fitting(self) -> int:
        """Return how many run at once on the connected cluster. Raises ResourceError if not one can."""
        fit = fitting(self.amounts, self.labels)
        return min(self.count or fit, fit)


@dataclass(frozen=True)
class Best:
    """The best trial of a study: its model's file, the MLflow runs of study and trial, the step of its last metrics."""

    trial: int
    value: float | None
    params: dict[str, Any]
    file: Path | None
    study_run: str
    trial_run: str
    step: int


@dataclass(frozen=True)
class Result:
    """A model's results on test images, and the facts that the registry keeps of it."""

    evaluation: Evaluation | Distillation
    measured: Measured
    module: nn.Module
    example: State
    card: str
    metrics: dict[str, float]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    trained: Mapping[str, float] = field(default_factory=dict)  # mean accuracy of what should be well above chance


@dataclass
class StudyTask(ABC):
    """A study of one kind in a workspace: what it trains, over what, and how its best model is measured.

    `begin` comes before all below it.
    """

    makes: ClassVar[Literal["translator", "student"]]
    selected_on: ClassVar[str]

    config: Config
    workspace: Workspace
    dataset: Dataset = field(init=False)
    tracker: Tracker = field(init=False)
    console: StudyConsole = field(init=False)

    @property
    def demands(self) -> Mapping[str, Demand]:
        """The work that runs on the cluster: `trials`, and others by their names. Empty if there is none."""
        search = self.config.search
        trial = search.resources
        return {"trials": Demand(trial.demand, trial.label_selector, search.concurrency)}

    @abstractmethod
    def try_batch(self, dataset: Dataset) -> tuple[int, float]:
        """Train one batch of the base trial, keeping nothing; return parameters and loss."""

    @abstractmethod
    def unchanged(self) -> bool:
        """Return whether the data that the trials of the last run shared is whole and still what the file asks for."""

    @abstractmethod
    def places(self, conclusion: Conclusion) -> Mapping[str, str]:
        """Return where things of this kind of study are stored, by name."""

    @abstractmethod
    def begin(self, dataset: Dataset, tracker: Tracker, console: StudyConsole) -> str:
        """Take the images; return what the study is about, in a line."""
        self.dataset, self.tracker, self.console = dataset, tracker, console
        return ""

    @abstractmethod
    def prepare(self, build: bool) -> Task:
        """Make what the trials share; if not `build`, raise ZooError if anything is missing."""

    def train_alone(self) -> Best:
        """Train the base trial in this process: for a study without demands."""
        raise NotImplementedError

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """The hash of what the trials shared."""

    @property
    def measured_on(self) -> str:
        """The fingerprint by which the registry tells which champions can be compared."""
        return self.fingerprint

    @property
    def shared(self) -> Input | None:
        """The data that the trials shared besides the images, for MLflow."""
        return None

    @abstractmethod
    def measure(self, file: Path, previous: Evaluation | Distillation | None) -> Result:
        """Look at the test images, unless `previous` is what the same model gave there."""
