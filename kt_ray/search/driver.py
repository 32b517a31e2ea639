"""The driver of a search: passes reports from workers to MLflow and the Optuna study, in that order. No Ray here.

MLflow is written first and the study last: if the driver dies between the two, the next driver repeats the end of that
trial, which MLflow takes as the same one.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kt_ray.config import Frozen
from kt_ray.errors import StudyError
from kt_ray.search.budget import SearchBudget, SearchProgress
from kt_ray.search.space import apply
from kt_ray.search.study import SearchStudy, StudyTrial
from kt_ray.search.task import RESULT_FILES
from kt_ray.search.worker import Report, describe_worker_loss

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 5  # a search ends if so many consecutive trials fail by an error of their own
BACK_OFF = (2.0, 60.0)  # seconds without a new trial after a lost worker: first and largest; doubled each time
TRACEBACK = "traceback.txt"  # artifact of a failed trial's run


class Tracking(Protocol):
    """The part of `kt_ray.tracking.tracker.Tracker` that a search uses."""

    def study_run(self, study: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> str: ...

    def trial_run(
        self, study_run_id: str, study: str, lineage: int, params: Mapping[str, Any], tags: Mapping[str, Any]
    ) -> str: ...

    def log(self, run_id: str, metrics: Mapping[str, float], step: int) -> None: ...

    def log_text(self, run_id: str, text: str, name: str) -> None: ...

    def finish(self, run_id: str, status: Any, tags: Mapping[str, Any] = ...) -> None: ...


@dataclass
class _RunningTrial:
    """A trial that a worker trains or is about to train."""

    trial: StudyTrial
    run: str
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    pruned: bool = False
    finished: bool = False
    failure: str | None = None
    infrastructure: bool = False
    traceback: str | None = None


class SearchDriver:
    """Start, follow and end the trials of a study for Ray Tune's searcher and scheduler.

    `checkpoints` is the directory of the trials' checkpoints, `concurrency` how many trials run at once. An error of
    the study or of MLflow is kept in `error` and ends the search in order.
    """

    def __init__(
        self,
        study: SearchStudy,
        tracker: Tracking,
        study_run: str,
        checkpoints: Path,
        concurrency: int,
        on_progress: Callable[[SearchProgress], None] | None = None,
    ) -> None:
        self._study = study
        self._tracker = tracker
        self._study_run = study_run
        self._checkpoints = checkpoints
        self._budget = SearchBudget(study)
        self.concurrency = concurrency
        self._on_progress = on_progress
        self._running: dict[str, _RunningTrial] = {}
        self._base: Frozen = study.config.trial
        self._failures_in_a_row = 0
        self._losses_in_a_row = 0
        self._resume_at = 0.0
        self.stopped: str | None = None
        self.error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray Tune pickles the searcher and scheduler, and no one reads that back."""
        return {}

    @property
    def finished(self) -> bool:
        """True if the search starts no further trial."""
        return self.halted or (not self._running and not self._budget.allows_trial([]))

    @property
    def halted(self) -> bool:
        """True if running trials must stop too: because of a signal, or an error of the study or MLflow."""
        return self.stopped is not None or self.error is not None

    def stop(self, reason: str) -> None:
        """End the search in order; the next search retries the trials that are running."""
        self.stopped = self.stopped or reason

    @property
    def limit(self) -> str | None:
        """The reason why an unfinished search starts no trials: a budget or the end of the grid."""
        return self._budget.limit(self._running_seconds())

    def next_trial(self, tune_id: str) -> dict[str, Any] | None:
        """Ask the study for a trial. Return the configuration of its worker, or None if there is nothing to start."""
        if self.halted or len(self._running) >= self.concurrency or time.monotonic() < self._resume_at:
            return None
        try:
            while self._budget.allows_trial(self._running_seconds()):
                trial = self._study.ask()
                self._budget.check_grid()
                run = self._tracker.trial_run(
                    self._study_run,
                    self._study.config.name,
                    trial.lineage,
                    trial.values,
                    {"kt_ray.optuna_trial": trial.number},
                )
                if trial.number == trial.lineage:  # checkpoints there are of another study that had this name
                    shutil.rmtree(self.directory(trial.lineage), ignore_errors=True)
                running = self._running[tune_id] = _RunningTrial(trial, run)
                if trial.step and self._study.should_prune(trial):
                    # The driver died between the report and the pruning that it led to.
                    running.pruned = True
                    running.metrics = self._study.last_metrics(trial)
                    self._end(tune_id)
                    continue
                self._show_progress()
                return {
                    "trial": apply(self._base, trial.values).model_dump(mode="json"),
                    "directory": str(self.directory(trial.lineage)),
                    "reported": trial.step,
                }
        except Exception as error:
            self.error = error
        return None

    def on_report(self, tune_id: str, report: Report) -> bool:
        """Pass a worker's report to MLflow and the study. Return whether the trial continues."""
        running = self._running.get(tune_id)
        if running is None or self.halted:
            return False
        if report.failure is not None:
            running.failure, running.infrastructure = report.failure, report.infrastructure
            running.traceback = report.traceback
            return False
        running.metrics = report.metrics | self._budget.cost(report.seconds)
        running.seconds, running.finished = report.seconds, report.finished
        try:
            if report.epoch > running.trial.step:
                self._study.values(running.metrics)
                self._tracker.log(running.run, running.metrics, report.epoch)
                running.pruned = self._study.report(running.trial, report.epoch, running.metrics, last=report.finished)
                self._losses_in_a_row = 0
                self._show_progress()
        except ValueError as error:
            running.failure = f"epoch {report.epoch}: {error}"
        except Exception as error:
            self.error = error
            return False
        return not (running.finished or running.pruned or running.failure)

    def on_worker_error(self, tune_id: str, message: str) -> None:
        """Keep Ray's message about a lost worker."""
        logger.debug("Ray about %s: %s", tune_id, message)
        if tune_id in self._running:
            running = self._running[tune_id]
            running.failure, running.infrastructure = describe_worker_loss(message)
            running.traceback = message or None

    def on_trial_end(self, tune_id: str, *, lost: bool) -> None:
        """Record that Ray Tune ended the trial; `lost` if its worker died."""
        running = self._running.get(tune_id)
        if running is None or self.halted:
            return  # `interrupt` takes care of running trials if a search is halted
        if lost and running.failure is None:
            running.failure, running.infrastructure = describe_worker_loss("")
        try:
            self._end(tune_id)
        except Exception as error:
            self.error = error

    def interrupt(self, reason: str) -> None:
        """Mark the running trials as failed and enqueue their retries."""
        for tune_id, running in list(self._running.items()):
            self._tracker.finish(running.run, "KILLED", {"kt_ray.state": "interrupted", "kt_ray.reason": reason})
            self._study.fail(running.trial.number, reason, retry=True, seconds=running.seconds or None)
            del self._running[tune_id]

    def directory(self, lineage: int) -> Path:
        """Return the directory of the checkpoints of a lineage's trials."""
        return self._checkpoints / str(lineage)

    def progress(self) -> SearchProgress:
        """Return how far the search is."""
        return self._budget.progress(self._running_seconds())

    def _running_seconds(self) -> list[float]:
        return [running.seconds for running in self._running.values()]

    def _end(self, tune_id: str) -> None:
        running = self._running[tune_id]
        if running.failure is not None:
            self._end_failed(running, running.failure)
        else:
            self._failures_in_a_row = 0
            tags: dict[str, Any] = {"kt_ray.state": "complete"}
            if running.pruned:
                tags = {"kt_ray.state": "pruned", "kt_ray.pruned_at": running.trial.step}
            self._tracker.finish(running.run, "KILLED" if running.pruned else "FINISHED", tags)
            self._study.end(running.trial, running.metrics, running.seconds, pruned=running.pruned)
        del self._running[tune_id]
        self._budget.update()
        self._remove_checkpoints(running)
        self._log_best()
        self._show_progress()

    def _end_failed(self, running: _RunningTrial, reason: str) -> None:
        trial = running.trial
        retry = running.infrastructure and trial.deaths < self._study.config.search.retries
        logger.warning("trial %d: %s%s", trial.lineage, reason, "; it is tried again" if retry else "")
        if running.traceback:
            level = logging.DEBUG if running.infrastructure else logging.WARNING
            logger.log(level, "trial %d: %s", trial.lineage, running.traceback.rstrip())
            self._keep_traceback(running.run, running.traceback)
        if running.infrastructure:
            first, largest = BACK_OFF
            self._resume_at = time.monotonic() + min(first * 2**self._losses_in_a_row, largest)
            self._losses_in_a_row += 1
        if retry:  # it may wait for long: a budget may end before its next try
            self._tracker.finish(running.run, "KILLED", {"kt_ray.state": "interrupted", "kt_ray.reason": reason})
        else:
            self._tracker.finish(running.run, "FAILED", {"kt_ray.state": "failed", "kt_ray.reason": reason})
        self._study.fail(
            trial.number, reason, retry=retry, died=running.infrastructure, seconds=running.seconds or None
        )
        if retry:
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            self.error = StudyError(
                f"{self._failures_in_a_row} trials in a row failed, the last (trial {trial.lineage}) with: {reason}; "
                f"its run in MLflow has the traceback ({TRACEBACK}); mend the cause and run the same command again"
            )

    def _keep_traceback(self, run: str, text: str) -> None:
        """Keep `text` with the trial's run. An artifact store that is away does not end a search."""
        try:
            self._tracker.log_text(run, text, TRACEBACK)
        except Exception as error:
            logger.warning("the traceback of a trial could not be kept in MLflow: %s", error)

    def _remove_checkpoints(self, running: _RunningTrial) -> None:
        """Remove the checkpoints of a trial that is over, except the result of a complete one."""
        if running.failure is not None and running.infrastructure:
            return
        directory = self.directory(running.trial.lineage)
        for entry in directory.glob("*"):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif not entry.match(RESULT_FILES) or running.pruned or running.failure is not None:
                entry.unlink(missing_ok=True)
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()

    def _log_best(self) -> None:
        """Log the best value so far on the study's run: a curve over the trials that have ended."""
        progress = self.progress()
        if progress.best_value is not None:
            metric = self._study.objectives[0].metric
            self._tracker.log(self._study_run, {f"best_{metric}": progress.best_value}, progress.done + progress.pruned)

    def _show_progress(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.progress())
