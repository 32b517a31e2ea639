"""The interface between a search and what its trials train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from kt_ray.config import Frozen
from kt_ray.search.worker import Training

RESULT_FILES = "*.safetensors"  # what a complete trial leaves beside its checkpoints


class Task(Protocol):
    """Trained by workers: a frozen dataclass, whose tensors travel through the object store without a copy a worker."""

    @property
    def dataset_fingerprint(self) -> str:
        """The hash of the images."""

    @property
    def config(self) -> type[Frozen]:
        """The model of one trial's configuration."""

    @property
    def shares(self) -> str:
        """One word for the data that all trials share besides the dataset."""

    @property
    def fingerprint(self) -> str:
        """The hash of what they share: another one is another study."""

    @property
    def code(self) -> tuple[str, ...]:
        """The files and folders of the package that decide a trial's numbers."""

    def params(self) -> Mapping[str, Any]:
        """Return the task's parameters in the study's MLflow run."""

    def training(self, trial: Any, device: str) -> Training:
        """A fresh training of `trial`."""

    def export(self, training: Any, trial: Any, directory: Path, metrics: Mapping[str, float]) -> None:
        """Leave what a finished training made as one safetensors file in `directory`."""
