from __future__ import annotations

import math
import time

import pytest

from kt_ray.zoo.progress import Count


def test_members_done_before_count_but_tell_nothing_of_the_pace() -> None:
    count = Count(total=10, missing=4, began=time.monotonic() - 60)
    count.add(1, [0.5, math.nan])
    progress = count.progress(actors=2)
    assert (progress.members, progress.done, progress.actors) == (10, 7, 2)
    assert progress.members_per_hour == pytest.approx(60, rel=0.01)
    assert progress.eta_seconds == pytest.approx(180, rel=0.01)
    assert progress.mean_accuracy == 0.5


def test_sources_that_were_not_measured_have_no_mean_accuracy() -> None:
    count = Count(total=2, missing=2)
    count.add(2, [math.nan, math.nan])
    progress = count.progress(actors=1)
    assert progress.mean_accuracy is None
    assert progress.eta_seconds == 0
