"""Translators over a zoo, as the trials of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kt_ray.config import Frozen, TrialConfig
from kt_ray.data import Dataset
from kt_ray.translation.checkpoint import save_translator
from kt_ray.translation.training import TranslatorTraining
from kt_ray.zoo.members import AnyZoo

TrainingFactory = Callable[[TrialConfig, AnyZoo, Dataset, str], Any]


def train_translator(config: TrialConfig, zoo: AnyZoo, dataset: Dataset, device: str) -> Any:
    """The training that a trial runs unless a test or benchmark gives another."""
    return TranslatorTraining(config, zoo, dataset, device)


@dataclass(frozen=True)
class TranslatorTask:
    """Translators trained over a zoo."""

    zoo: AnyZoo
    dataset: Dataset
    make: TrainingFactory = train_translator

    @property
    def config(self) -> type[Frozen]:
        """The model of one trial's configuration."""
        return TrialConfig

    @property
    def dataset_fingerprint(self) -> str:
        """The hash of the images."""
        return self.dataset.fingerprint

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
        return ("data", "networks", "translation")

    def params(self) -> Mapping[str, Any]:
        """Pair and zoo."""
        return {"pair": self.zoo.architecture.pair, "zoo": self.zoo.fingerprint}

    def training(self, trial: TrialConfig, device: str) -> Any:
        """A fresh training of a translator."""
        return self.make(trial, self.zoo, self.dataset, device)

    def export(self, training: Any, trial: TrialConfig, directory: Path, metrics: Mapping[str, float]) -> None:
        """The translator with its configuration, `translator.safetensors`, where the training has one."""
        translator = getattr(training, "translator", None)
        if translator is not None:
            extra: dict[str, Any] = {"trial": trial.model_dump(mode="json"), "metrics": dict(metrics)}
            extra |= {"zoo": self.zoo.fingerprint, "dataset": self.zoo.dataset_fingerprint}
            path = directory / "translator.safetensors"
            save_translator(path, translator, trial.translator, self.zoo.architecture, extra)
