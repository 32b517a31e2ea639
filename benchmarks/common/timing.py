"""Timing of alternatives in turn, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def seconds(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds that a call takes by `clock`: wall time, or processor time by `time.process_time`."""
    began = clock()
    work()
    return clock() - began


def in_turn(
    works: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of each of `works` in each of `rounds`, every round running all of them once, in order."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds(work, clock))
    return taken


def medians(samples: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each entry."""
    return {name: statistics.median(values) for name, values in samples.items()}
