"""Texts that people read: first lines of errors, numbers, durations."""

from __future__ import annotations

from typing import Any


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def duration(seconds: float | None) -> str:
    """Return seconds as "3 min 20 s"; "-" if unknown."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def number(value: Any) -> str:
    """Return a float with four significant digits, anything else as it is; "-" for None."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
