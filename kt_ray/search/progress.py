"""Where a search stands while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SearchProgress:
    """`done` trials are complete; `pruned` ones are finished too; `failed` ones are not asked again.

    `device_hours` are GPU-hours of trials on a GPU, CPU-hours of others.
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
