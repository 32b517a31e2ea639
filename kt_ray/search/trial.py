"""One trial in a Ray worker: the Ray Tune side of a `TrialSession`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ray import tune

from kt_ray.config import TrialConfig, validate
from kt_ray.data import Dataset
from kt_ray.search.session import TRANSLATOR, Report, TrainingFactory, TrialSession, diagnose
from kt_ray.search.sharing import unpack
from kt_ray.zoo.members import Zoo


class TranslatorTrial(tune.Trainable):
    """Trains translators, one trial after another, in a worker that Ray Tune keeps.

    `config` holds `trial` (a dump of TrialConfig), `directory` and `reported`; the zoo and the dataset come once a
    worker, from the object store.
    """

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], zoo: Any, dataset: Any, make: TrainingFactory, device: str, threads: int
    ) -> None:
        """Once a worker. Nothing of the trial yet: its errors are to be reported, not to end the worker."""
        torch.set_num_threads(threads)
        self._zoo: Zoo = unpack(zoo)
        self._dataset: Dataset = unpack(dataset)
        self._make = make
        self._device = device
        self._session: TrialSession | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial."""
        self._session = None
        return True

    def step(self) -> dict[str, Any]:
        """One epoch. Never `done`: Ray Tune would not show the scheduler, which is to stop the trial, such a result."""
        try:
            report = self._advance()
        except Exception as error:
            self._session = None
            reason, infrastructure = diagnose(error)
            report = Report(0, failure=reason, infrastructure=infrastructure)
        return {"report": report}

    def _advance(self) -> Report:
        directory = Path(self.config["directory"])
        trial = validate(TrialConfig, self.config["trial"])
        if self._session is None:
            training = self._make(trial, self._zoo, self._dataset, self._device)
            self._session = TrialSession(training, directory, self.config["reported"])
        report = self._session.advance()
        if report.finished:
            self._export(trial, directory / TRANSLATOR, report)
        return report

    def _export(self, trial: TrialConfig, path: Path, report: Report) -> None:
        """Leave the finished translator beside the checkpoints, where the training has one."""
        training = self._session.training if self._session else None
        translator = getattr(training, "translator", None)
        if translator is not None:
            from kt_ray.translators.checkpoint import save_translator

            extra: dict[str, Any] = {"trial": trial.model_dump(mode="json"), "metrics": report.metrics}
            extra |= {"zoo": self._zoo.fingerprint, "dataset": self._zoo.dataset_fingerprint}
            save_translator(path, translator, trial.translator, self._zoo.architecture, extra)
