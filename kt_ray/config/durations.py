"""Durations as people write them: `90 min`, `2 h`, `1:30 h`; a plain number is of hours."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PositiveFloat

HOURS = {"s": 1 / 3600, "min": 1 / 60, "h": 1.0, "d": 24.0}  # of each unit
WRITTEN = re.compile(
    r"(?:(?P<whole>\d+):(?P<minutes>[0-5]\d)\s*h|(?P<amount>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>s|min|h|d))"
)


def in_hours(value: Any) -> Any:
    """Return hours for a text with a unit; a number as it is. Raises ValueError for any other text."""
    if not isinstance(value, str):
        return value
    written = WRITTEN.fullmatch(value.strip())
    if written is None:
        raise ValueError(f"expected hours, or a duration such as `90 min`, `2 h` or `1:30 h`, got {value[:80]!r}")
    if written["unit"]:
        return float(written["amount"]) * HOURS[written["unit"]]
    return int(written["whole"]) + int(written["minutes"]) / 60


Hours = Annotated[PositiveFloat, BeforeValidator(in_hours)]
