"""The driver's side of a running search: what the study, MLflow and the workers are told, in which order. No Ray here.

MLflow is told first and the study last: a driver that dies between the two does that trial's end again, which MLflow
takes as the same one.
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
from kt_ray.search.budget import Tally
from kt_ray.search.progress import SearchProgress
from kt_ray.search.space import apply
from kt_ray.search.study import Candidate, SearchStudy
from kt_ray.search.task import PRODUCT
from kt_ray.search.worker import Report
from kt_ray.search.worker_loss import why_lost

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 5  # so many trials failing by their own error, one after the other, end a search
BACK_OFF = (2.0, 60.0)  # seconds without a new trial after a worker is lost: first, at most; doubled each time


class Tracking(Protocol):
    """The part of `kt_ray.tracking.Tracker` that a search uses."""

    def study_run(self, study: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> str: ...

    def trial_run(
        self, study_run_id: str, study: str, lineage: int, params: Mapping[str, Any], tags: Mapping[str, Any]
    ) -> str: ...

    def log(self, run_id: str, metrics: Mapping[str, float], step: int) -> None: ...

    def finish(self, run_id: str, status: Any, tags: Mapping[str, Any] = ...) -> None: ...


@dataclass
class _Live:
    """A trial that a worker has, or is about to have."""

    candidate: Candidate
    run: str
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    pruned: bool = False
    finished: bool = False
    failure: str | None = None
    infrastructure: bool = False


class Ledger:
    """Starts, hears and ends trials for Ray Tune's searcher and scheduler, which see it only by its methods.

    `devices` is how many devices a trial holds, for device-hours. An error of the study or of MLflow is kept in
    `fault` and ends the search in order.
    """

    def __init__(
        self,
        study: SearchStudy,
        tracker: Tracking,
        study_run: str,
        checkpoints: Path,
        *,
        total: int,
        concurrency: int,
        devices: float,
        on_progress: Callable[[SearchProgress], None] | None = None,
    ) -> None:
        self._study = study
        self._tracker = tracker
        self._study_run = study_run
        self._checkpoints = checkpoints
        self._tally = Tally(study, total=total, devices=devices)
        self.concurrency = concurrency
        self._on_progress = on_progress
        self._live: dict[str, _Live] = {}
        self._base: Frozen = study.config.trial
        self._failures_in_a_row = 0
        self._losses_in_a_row = 0
        self._resume_at = 0.0
        self.stopped: str | None = None
        self.fault: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles the searcher and scheduler that hold a ledger, and nobody reads that back."""
        return {}

    @property
    def over(self) -> bool:
        """Whether the search starts no further trial, ever."""
        return self.halted or (not self._live and not self._tally.lacks([]))

    @property
    def halted(self) -> bool:
        """Whether running trials are to be stopped too: a signal came, or the study or MLflow failed."""
        return self.stopped is not None or self.fault is not None

    def stop(self, reason: str) -> None:
        """End the search in order; trials that run are asked again by the next one."""
        self.stopped = self.stopped or reason

    @property
    def limit(self) -> str | None:
        """What keeps the search from starting more trials though the study lacks some: a budget, or the grid's end."""
        return self._tally.limit(self._running())

    def _running(self) -> list[float]:
        """Seconds that the trials which run have taken."""
        return [live.seconds for live in self._live.values()]

    def start(self, tune_id: str) -> dict[str, Any] | None:
        """Ask the study for a trial. Returns what its worker needs, or None while there is nothing to start."""
        if self.halted or len(self._live) >= self.concurrency or time.monotonic() < self._resume_at:
            return None
        try:
            while self._tally.lacks(self._running()):
                candidate = self._study.ask()
                self._tally.look()
                run = self._tracker.trial_run(
                    self._study_run,
                    self._study.config.name,
                    candidate.lineage,
                    candidate.values,
                    {"kt_ray.optuna_trial": candidate.number},
                )
                if candidate.number == candidate.lineage:  # what lies there is of another study that had the name
                    shutil.rmtree(self.directory(candidate.lineage), ignore_errors=True)
                live = self._live[tune_id] = _Live(candidate, run)
                if candidate.step and self._study.should_prune(candidate):
                    # The driver died between the report and the pruning that it led to.
                    live.pruned = True
                    live.metrics = self._study.last_metrics(candidate)
                    self._end(tune_id)
                    continue
                self._tell_progress()
                return {
                    "trial": apply(self._base, candidate.values).model_dump(mode="json"),
                    "directory": str(self.directory(candidate.lineage)),
                    "reported": candidate.step,
                }
        except Exception as error:
            self.fault = error
        return None

    def hear(self, tune_id: str, report: Report) -> bool:
        """Take a worker's report to MLflow and the study. Returns whether the trial goes on."""
        live = self._live.get(tune_id)
        if live is None or self.halted:
            return False
        if report.failure is not None:
            live.failure, live.infrastructure = report.failure, report.infrastructure
            return False
        live.metrics = report.metrics | self._tally.cost(report.seconds)
        live.seconds, live.finished = report.seconds, report.finished
        try:
            if report.epoch > live.candidate.step:
                self._study.values(live.metrics)
                self._tracker.log(live.run, live.metrics, report.epoch)
                live.pruned = self._study.report(live.candidate, report.epoch, live.metrics, last=report.finished)
                self._losses_in_a_row = 0
                self._tell_progress()
        except ValueError as error:
            live.failure = f"epoch {report.epoch}: {error}"
        except Exception as error:
            self.fault = error
            return False
        return not (live.finished or live.pruned or live.failure)

    def blame(self, tune_id: str, words: str) -> None:
        """Keep what Ray said of a lost worker."""
        logger.debug("Ray about %s: %s", tune_id, words)
        if tune_id in self._live:
            self._live[tune_id].failure, self._live[tune_id].infrastructure = why_lost(words)

    def end(self, tune_id: str, *, lost: bool) -> None:
        """Ray Tune let go of the trial; `lost` if its worker died."""
        live = self._live.get(tune_id)
        if live is None or self.halted:
            return  # `interrupt` takes care of what runs when a search is halted
        if lost and live.failure is None:
            live.failure, live.infrastructure = why_lost("")
        try:
            self._end(tune_id)
        except Exception as error:
            self.fault = error

    def interrupt(self, reason: str) -> None:
        """Trials that still run are told FAIL and asked again."""
        for tune_id, live in list(self._live.items()):
            self._tracker.finish(live.run, "KILLED", {"kt_ray.state": "interrupted", "kt_ray.reason": reason})
            self._study.fail(live.candidate.number, reason, retry=True, seconds=live.seconds or None)
            del self._live[tune_id]

    def directory(self, lineage: int) -> Path:
        """Where the trials of a lineage keep their checkpoints."""
        return self._checkpoints / str(lineage)

    def _end(self, tune_id: str) -> None:
        live = self._live[tune_id]
        if live.failure is not None:
            self._end_failed(live, live.failure)
        else:
            self._failures_in_a_row = 0
            tags = {"kt_ray.state": "pruned", "kt_ray.pruned_at": live.candidate.step} if live.pruned else {
                "kt_ray.state": "complete"
            }  # fmt: skip
            self._tracker.finish(live.run, "KILLED" if live.pruned else "FINISHED", tags)
            self._study.end(live.candidate, live.metrics, live.seconds, pruned=live.pruned)
        del self._live[tune_id]
        self._tally.count()
        self._tidy(live)
        self._tell_progress()

    def _end_failed(self, live: _Live, reason: str) -> None:
        again = live.infrastructure and live.candidate.deaths < self._study.config.search.retries
        logger.warning("trial %d: %s%s", live.candidate.lineage, reason, "; it is tried again" if again else "")
        if live.infrastructure:
            first, most = BACK_OFF
            self._resume_at = time.monotonic() + min(first * 2**self._losses_in_a_row, most)
            self._losses_in_a_row += 1
        if again:  # it may wait for long: a budget may end before its next try
            self._tracker.finish(live.run, "KILLED", {"kt_ray.state": "interrupted", "kt_ray.reason": reason})
        else:
            self._tracker.finish(live.run, "FAILED", {"kt_ray.state": "failed", "kt_ray.reason": reason})
        self._study.fail(
            live.candidate.number, reason, retry=again, died=live.infrastructure, seconds=live.seconds or None
        )
        if again:
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            self.fault = StudyError(
                f"{self._failures_in_a_row} trials in a row failed, the last (trial {live.candidate.lineage}) with: "
                f"{reason}; mend the cause and run the same command again"
            )

    def _tidy(self, live: _Live) -> None:
        """Drop the checkpoints of a trial that is over, but for the translator of a complete one."""
        directory = self.directory(live.candidate.lineage)
        if live.failure is not None and live.infrastructure:
            return
        for entry in directory.glob("*"):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif not entry.match(PRODUCT) or live.pruned or live.failure is not None:
                entry.unlink(missing_ok=True)
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()

    def progress(self) -> SearchProgress:
        """Where the search stands."""
        return self._tally.progress(self._running())

    def _tell_progress(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.progress())
