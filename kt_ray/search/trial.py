"""One trial in a Ray worker: the Ray Tune side of a `TrialSession`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ray import tune

from kt_ray.config import validate
from kt_ray.search.task import Task
from kt_ray.search.tensor_transport import unpack
from kt_ray.search.worker import Report, TrialSession, diagnose


class TaskTrial(tune.Trainable):
    """Trains what a task says, one trial after another, in a worker that Ray Tune keeps.

    `config` holds `trial` (a dump of its configuration), `directory` and `reported`; the task comes once a worker,
    from the object store.
    """

    def setup(self, config: dict[str, Any], task: Any, device: str, threads: int) -> None:  # type: ignore[override]
        """Once a worker. Nothing of the trial yet: its errors are to be reported, not to end the worker."""
        torch.set_num_threads(threads)
        self._task: Task = unpack(task)
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
        trial = validate(self._task.config, self.config["trial"])
        if self._session is None:
            self._session = TrialSession(self._task.training(trial, self._device), directory, self.config["reported"])
        report = self._session.advance()
        if report.finished:
            self._task.export(self._session.training, trial, directory, report.metrics)
        return report
