"""Where a build of a zoo stands while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is. Counts are of members; `mean_accuracy` is of the sources trained by this build."""

    members: int
    done: int
    seconds: float
    members_per_hour: float
    eta_seconds: float | None
    mean_accuracy: float | None
    actors: int


@dataclass
class Count:
    """The members of a build that are done: of `missing` ones, for a zoo of `total`."""

    total: int
    missing: int
    began: float = field(default_factory=time.monotonic)
    done: int = 0
    accuracies: list[float] = field(default_factory=list)

    def add(self, members: int, accuracies: Iterable[float]) -> None:
        """`members` more are done; `accuracies` are those of their sources, NaN where none was measured."""
        self.done += members
        self.accuracies += [accuracy for accuracy in accuracies if not math.isnan(accuracy)]

    def progress(self, actors: int) -> BuildProgress:
        """How far the build is, once a member is done."""
        seconds = time.monotonic() - self.began
        left = self.missing - self.done
        return BuildProgress(
            members=self.total,
            done=self.total - left,
            seconds=seconds,
            members_per_hour=self.done / seconds * 3600,
            eta_seconds=left * seconds / self.done,
            mean_accuracy=sum(self.accuracies) / len(self.accuracies) if self.accuracies else None,
            actors=actors,
        )
