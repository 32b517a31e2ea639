"""The interface between a search and what its trials train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from kt_ray.config import Frozen
from kt_ray.search.worker import Training

RESULT_FILES = "*.safetensors"  # what a complete trial leaves beside its checkpoints


class Task(Protocol):
    """Trained by workers: a frozen dataclass, which travels through the object store.

    `config` is the model of one trial's configuration, `shares` a word for the data that all trials share besides the
    dataset, `code` the files and folders of the package that decide a trial's numbers.
    """

    config: ClassVar[type[Frozen]]
    shares: ClassVar[str]
    code: ClassVar[tuple[str, ...]]

    @property
    def dataset_fingerprint(self) -> str:
        """The hash of the images."""

    @property
    def fingerprint(self) -> str:
        """The hash of what they share: another one is another study."""

    def params(self) -> Mapping[str, Any]:
        """Return the task's parameters in the study's MLflow run."""

    def prepared(self, device: str) -> Task:
        """Return the task with what all trials on `device`, "cpu" or "cuda", would otherwise make each for itself.

        The driver calls it once, and a node's workers map the result uncopied.
        """

    def training(self, trial: Any, device: str) -> Training:
        """Return a fresh training of `trial`."""

    def export(self, training: Any, trial: Any, directory: Path, metrics: Mapping[str, float]) -> None:
        """Leave what a finished training made as one safetensors file in `directory`."""
