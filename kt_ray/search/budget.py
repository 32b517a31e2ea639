"""What a search has and what it may still use: how trials ended, device-hours, budgets."""

from __future__ import annotations

import time
from collections.abc import Collection

from optuna.trial import TrialState

from kt_ray.search.progress import SearchProgress
from kt_ray.search.retries import SECONDS, chosen, lineages
from kt_ray.search.study import SearchStudy


class Tally:
    """Counts the lineages of a study that shall have `total`; a trial holds `devices`, for device-hours.

    `running` is, for each trial that a worker has, the seconds it has taken.
    """

    def __init__(self, study: SearchStudy, *, total: int, devices: float) -> None:
        self._study = study
        self._total = total
        self._devices = devices
        self.search = study.config.search
        self._began = time.monotonic()
        self.count()
        self._done_before = self._done

    def count(self) -> None:
        """Count how lineages ended: once a trial, not once a report."""
        trials = self._study.trials()
        last = list(lineages(trials).values())
        self._pruned = sum(trial.state is TrialState.PRUNED for trial in last)
        self._failed = sum(trial.state is TrialState.FAIL for trial in last)
        self._done = self._pruned + sum(trial.state is TrialState.COMPLETE for trial in last)
        self._seconds = sum(float(trial.user_attrs.get(SECONDS, 0.0)) for trial in last)
        self._best = chosen(self._study.optuna, trials)
        self.look()

    def look(self) -> None:
        """See whether a grid has points left."""
        self._exhausted = self._study.exhausted

    def lacks(self, running: Collection[float]) -> bool:
        """Whether the study needs a trial that nothing runs, and may have it."""
        return self._done + len(running) < self._total and self.limit(running) is None

    def limit(self, running: Collection[float]) -> str | None:
        """What keeps the search from starting more trials though the study lacks some: a budget, or the grid's end."""
        hours, device_hours = self.search.hours, self.search.device_hours
        if hours is not None and time.monotonic() - self._began > 3600 * hours:
            return f"search.hours={hours:g} are used up"
        if device_hours is not None and self._device_hours(running) >= device_hours:
            return f"search.device_hours={device_hours:g} are used up"
        if self._exhausted:
            return "every point of the grid is tried"
        return None

    def cost(self, seconds: float) -> dict[str, float]:
        """What a trial of so many seconds costs, as metrics."""
        return {"trial_seconds": seconds, "device_hours": self._devices * seconds / 3600}

    def progress(self, running: Collection[float]) -> SearchProgress:
        """Where the search stands."""
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
