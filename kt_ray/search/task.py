"""What the trials of a study train: translators over a zoo here, students of a teacher in `distillation/trials.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kt_ray.config import Frozen, TrialConfig
from kt_ray.data import Dataset
from kt_ray.search.session import Training
from kt_ray.zoo.members import Zoo

TrainingFactory = Callable[[TrialConfig, Zoo, Dataset, str], Training]
PRODUCT = "*.safetensors"  # what a complete trial leaves beside its checkpoints


class Task(Protocol):
    """Trained by workers: a frozen dataclass, whose tensors travel through the object store without a copy a worker."""

    @property
    def dataset(self) -> Dataset:
        """The images."""

    @property
    def config(self) -> type[Frozen]:
        """The model of one trial's configuration."""

    @property
    def shares(self) -> str:
        """What all trials share besides the dataset, in a word."""

    @property
    def fingerprint(self) -> str:
        """The hash of what they share: another one is another study."""

    @property
    def code(self) -> tuple[str, ...]:
        """The files and folders of the package that decide a trial's numbers."""

    def params(self) -> Mapping[str, Any]:
        """What the study's MLflow run says of the task."""

    def training(self, trial: Any, device: str) -> Training:
        """A fresh training of `trial`."""

    def export(self, training: Any, trial: Any, directory: Path, metrics: Mapping[str, float]) -> None:
        """Leave what a finished training made as one safetensors file in `directory`."""


def train_translator(config: TrialConfig, zoo: Zoo, dataset: Dataset, device: str) -> Training:
    """The training that a trial runs unless a test or benchmark gives another."""
    from kt_ray.training import TranslatorTraining

    return TranslatorTraining(config, zoo, dataset, device)


@dataclass(frozen=True)
class TranslatorTask:
    """Translators trained over a zoo."""

    zoo: Zoo
    dataset: Dataset
    make: TrainingFactory = train_translator

    @property
    def config(self) -> type[Frozen]:
        """The model of one trial's configuration."""
        return TrialConfig

    @property
    def shares(self) -> str:
        """They share a zoo."""
        return "zoo"

    @property
    def fingerprint(self) -> str:
        """The zoo's."""
        return self.zoo.fingerprint

    @property
    def code(self) -> tuple[str, ...]:
        """The files and folders of the package that decide a translator's numbers."""
        files = ("augmentations.py", "data.py", "divergences.py", "evaluation.py", "losses.py", "training.py")
        return (*files, "networks", "translators")

    def params(self) -> Mapping[str, Any]:
        """Pair and zoo."""
        return {"pair": self.zoo.architecture.pair, "zoo": self.zoo.fingerprint}

    def training(self, trial: TrialConfig, device: str) -> Training:
        """A fresh training of a translator."""
        return self.make(trial, self.zoo, self.dataset, device)

    def export(self, training: Any, trial: TrialConfig, directory: Path, metrics: Mapping[str, float]) -> None:
        """The translator with its configuration, `translator.safetensors`, where the training has one."""
        from kt_ray.translators.checkpoint import save_translator

        translator = getattr(training, "translator", None)
        if translator is not None:
            extra: dict[str, Any] = {"trial": trial.model_dump(mode="json"), "metrics": dict(metrics)}
            extra |= {"zoo": self.zoo.fingerprint, "dataset": self.zoo.dataset_fingerprint}
            path = directory / "translator.safetensors"
            save_translator(path, translator, trial.translator, self.zoo.architecture, extra)
