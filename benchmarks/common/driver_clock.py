"""The driver's CPU time from one event to the next, and a tracker that keeps nothing but these events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class Clock:
    """The driver's CPU time at each of its events. The first one ends the start, which is not of interest."""

    def __init__(self) -> None:
        self.cpu: list[float] = []

    def tick(self, *_: object) -> None:
        """An event."""
        self.cpu.append(time.process_time())

    @property
    def ms(self) -> float:
        """Milliseconds of CPU time from one event to the next, in the mean."""
        return 1000 * (self.cpu[-1] - self.cpu[0]) / (len(self.cpu) - 1)


class NoTracking:
    """A tracker that keeps nothing, and ticks at each report: MLflow's cost is measured in another benchmark."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def study_run(self, study: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
        """A run."""
        return "study"

    def trial_run(self, study_run_id: str, study: str, lineage: int, params: Any, tags: Any) -> str:
        """A run."""
        return f"trial-{lineage}"

    def log(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """An event."""
        self.clock.tick()

    def finish(self, run_id: str, status: Any, tags: Mapping[str, Any] | None = None) -> None:
        """Nothing."""
