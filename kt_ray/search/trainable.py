"""The worker's side of a search: a Ray Tune trainable, which imports nothing that only the driver needs."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ray import tune

from kt_ray.config import validate
from kt_ray.config.code import CodeFile
from kt_ray.config.study_code import load_code
from kt_ray.jobs.device import end_if_device_broken, open_device, release_memory
from kt_ray.search.task import Task
from kt_ray.search.worker import Report, TrialSession, describe_failure

logger = logging.getLogger(__name__)


class TaskTrainable(tune.Trainable):
    """Train the trials of a task, one after another, in a worker that Ray Tune reuses.

    `config` holds `trial` (a dump of its configuration), `directory` and `reported`; the task is read from the object
    store once per worker.
    """

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], task: Task, gpus: float, threads: int, code: Sequence[CodeFile]
    ) -> None:
        """Prepare the worker. Nothing of the trial yet: its errors are to be reported, not to end the worker."""
        torch.set_num_threads(threads)
        self._task = task
        self._code = code
        self._device = open_device(gpus)
        self._trial: Any = None
        self._session: TrialSession | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._session = None
        release_memory(self._device)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch. Never `done`: Ray Tune would not show such a result to the scheduler, which stops trials."""
        try:
            report = self._advance()
        except Exception as error:
            end_if_device_broken(error)
            self._session = None
            reason, infrastructure = describe_failure(error)
            logger.exception("the trial in %s failed", self.config["directory"])
            report = Report(0, failure=reason, infrastructure=infrastructure, traceback=traceback.format_exc())
        return {"report": report}

    def _advance(self) -> Report:
        directory = Path(self.config["directory"])
        if self._session is None:
            load_code(self._code)
            self._trial = validate(self._task.config, self.config["trial"])
            training = self._task.training(self._trial, self._device)
            self._session = TrialSession(training, directory, self.config["reported"])
        report = self._session.advance()
        if report.finished:
            self._task.export(self._session.training, self._trial, directory, report.metrics)
        return report
