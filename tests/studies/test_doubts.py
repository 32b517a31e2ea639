"""Results that a person would be shocked by are told."""

from __future__ import annotations

import pytest

from kt_ray.studies.doubts import doubts


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (({"targets": 0.95}, 10, 0.9, 0.91, [0.5, 0.7, 0.9], 500), 0),
        (({"sources": 0.97, "targets": 0.12}, 10, None, 0.0), 1),
        (({}, 10, 0.95, 0.55), 1),
        (({}, 10, 0.9, 0.9, [0.899, 0.9, 0.9], 100), 1),
        (({}, 10, 0.9, 0.9, [0.9, 0.9], 100), 0),
        (({"student": 0.1}, 10, 0.9, 0.1, [0.9, 0.9, 0.9], 100), 3),
    ],
)
def test_each_shocking_result_is_a_line(arguments: tuple, count: int) -> None:  # type: ignore[type-arg]
    assert len(list(doubts(*arguments))) == count
