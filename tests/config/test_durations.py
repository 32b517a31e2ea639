"""Budgets of a search with and without units."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from kt_ray.config.base import parse_overrides
from kt_ray.config.study import SearchConfig


@pytest.mark.parametrize(
    ("text", "hours"),
    [("90 min", 1.5), ("1:30 h", 1.5), ("2 h", 2), ("2h", 2), ("30 s", 1 / 120), ("1.5 d", 36), ("1.5", 1.5), ("3", 3)],
)
def test_a_duration_is_hours_unless_it_has_a_unit(text: str, hours: float) -> None:
    value = parse_overrides([f"hours={text}"])["hours"]
    config = SearchConfig(hours=value, device_hours=value)
    assert config.hours == config.device_hours == pytest.approx(hours)
    assert SearchConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("text", ["1:30", "1:75 h", "90 minutes", "-2 h", "0 min", "true", "h", "1e400 h", "[1, h]"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        SearchConfig.model_validate(parse_overrides([f"hours={text}"]))
