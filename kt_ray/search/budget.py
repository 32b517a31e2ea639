"""The budget of a search: how many trials ended in which way, device-hours used, and whether more trials may start."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState

from kt_ray.search.retries import SECONDS, lineages, select_champion
from kt_ray.search.study import SearchStudy


@dataclass(frozen=True)
class SearchProgress:
    """Counts and the best trial of a running search.

    `done` trials are complete; `pruned` ones are finished too; `failed` ones are not retried. `device_hours` are
    GPU-hours of trials on a GPU, CPU-hours of others.
    """

    done: int
    running: int
    pruned: int
    failed: int
    total: int
    best_value: float | None
    best_params: dict[str, Any]
    eta_seconds: float | None
    device_hours: float


class SearchBudget:
    """Compare what the trials of a study have used with what its study file allows.

    `running` in the methods holds the seconds that each running trial has taken so far.
    """

    def __init__(self, study: SearchStudy) -> None:
        self._study = study
        self.search = study.config.search
        self._total = self.search.trials
        self._devices = self.search.resources.devices
        self._began = time.monotonic()
        self.update()
        self._done_before = self._done

    def update(self) -> None:
        """Count the trials of the study again. Called when a trial starts or ends, not at each report."""
        trials = self._study.trials()
        last = list(lineages(trials).values())
        self._pruned = sum(trial.state is TrialState.PRUNED for trial in last)
        self._failed = sum(trial.state is TrialState.FAIL for trial in last)
        self._done = self._pruned + sum(trial.state is TrialState.COMPLETE for trial in last)
        self._seconds = sum(float(trial.user_attrs.get(SECONDS, 0.0)) for trial in last)
        self._best = select_champion(self._study.optuna, trials)
        self.check_grid()

    def check_grid(self) -> None:
        """Check whether a grid has points left."""
        self._exhausted = self._study.exhausted

    def allows_trial(self, running: Collection[float]) -> bool:
        """Return whether the study needs one more trial than those running, and no limit forbids it."""
        return self._done + len(running) < self._total and self.limit(running) is None

    def limit(self, running: Collection[float]) -> str | None:
        """Return what keeps an unfinished search from starting trials: a budget or the end of the grid."""
        hours, device_hours = self.search.hours, self.search.device_hours
        if hours is not None and time.monotonic() - self._began > 3600 * hours:
            return f"search.hours={hours:g} are used up"
        if device_hours is not None and self._device_hours(running) >= device_hours:
            return f"search.device_hours={device_hours:g} are used up"
        if self._exhausted:
            return "every point of the grid is tried"
        return None

    def cost(self, seconds: float) -> dict[str, float]:
        """Return what a trial of `seconds` costs, as metrics."""
        return {"trial_seconds": seconds, "device_hours": self._devices * seconds / 3600}

    def progress(self, running: Collection[float]) -> SearchProgress:
        """Return how far the search is."""
        done_now = self._done - self._done_before
        elapsed = time.monotonic() - self._began
        return SearchProgress(
            done=self._done - self._pruned,
            running=len(running),
            pruned=self._pruned,
            failed=self._failed,
            total=self._total,
            best_value=self._best.values[0] if self._best else None,
            best_params=dict(self._best.params) if self._best else {},
            eta_seconds=elapsed / done_now * max(self._total - self._done, 0) if done_now else None,
            device_hours=self._device_hours(running),
        )

    def _device_hours(self, running: Collection[float]) -> float:
        return self._devices * (self._seconds + sum(running)) / 3600
