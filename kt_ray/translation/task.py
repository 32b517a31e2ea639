"""Translators over a zoo, as the trials of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from kt_ray.config import Frozen, TrialConfig
from kt_ray.data import Dataset
from kt_ray.translation.checkpoint import save_translator
from kt_ray.translation.prepared import Prepared
from kt_ray.translation.training import TranslatorTraining
from kt_ray.zoo.members import AnyZoo


@dataclass(frozen=True)
class TranslatorTask:
    """Translators trained over a zoo; see `kt_ray.search.task.Task`.

    `make` begins the training of a trial, `mixture` says whether trials draw probes from a mixture of training images.
    """

    zoo: AnyZoo
    dataset: Dataset
    make: Callable[[TrialConfig, AnyZoo, Dataset, str, Prepared | None], Any] = TranslatorTraining
    mixture: bool = False
    made: Prepared | None = None

    config: ClassVar[type[Frozen]] = TrialConfig
    shares: ClassVar[str] = "zoo"
    code: ClassVar[tuple[str, ...]] = ("data", "networks", "translation")

    @property
    def dataset_fingerprint(self) -> str:
        return self.dataset.fingerprint

    @property
    def fingerprint(self) -> str:
        return self.zoo.fingerprint

    def params(self) -> Mapping[str, Any]:
        return {"pair": self.zoo.architecture.pair, "zoo": self.zoo.fingerprint}

    def prepared(self, device: str) -> TranslatorTask:
        """Return the task with the mixture, and the stem activations if trials run on the CPU, made."""
        return replace(
            self, made=Prepared.of(self.zoo, self.dataset, mixture=self.mixture, activations=device == "cpu")
        )

    def training(self, trial: TrialConfig, device: str) -> Any:
        return self.make(trial, self.zoo, self.dataset, device, self.made)

    def export(self, training: Any, trial: TrialConfig, directory: Path, metrics: Mapping[str, float]) -> None:
        """Write the translator with its configuration as `translator.safetensors`, if the training has one."""
        translator = getattr(training, "translator", None)
        if translator is not None:
            extra: dict[str, Any] = {"trial": trial.model_dump(mode="json"), "metrics": dict(metrics)}
            extra |= {"zoo": self.zoo.fingerprint, "dataset": self.zoo.dataset_fingerprint}
            path = directory / "translator.safetensors"
            save_translator(path, translator, trial.translator, self.zoo.architecture, extra)
