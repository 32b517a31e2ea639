"""Straight lines through measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls


def rising_line(points: Sequence[tuple[float, float]], at: float) -> float:
    """Return the value at `at` of the straight line through the points that never falls (least squares)."""
    places, values = np.array(points, dtype=float).T
    (start, rise), _ = nnls(np.stack([np.ones_like(places), places], axis=1), values)
    return float(start + rise * at)
