"""Values of discrete paths are those that Optuna contains, and are never listed without bound."""

from __future__ import annotations

import itertools

import optuna
import pytest

from kt_ray.config import Distribution
from kt_ray.search.space import values_of

LOWS, SPANS, STEPS = (0.0, 0.1, -0.3, 1.0), (0.3, 0.7, 1.0, 2.1), (0.1, 0.05, 0.3, 0.07)


@pytest.mark.parametrize(("low", "span", "step"), list(itertools.product(LOWS, SPANS, STEPS)))
def test_stepped_values_are_contained(low: float, span: float, step: float) -> None:
    values = values_of(Distribution(float=(low, low + span), step=step))
    optunas = optuna.distributions.FloatDistribution(low, low + span, step=step)
    assert values
    assert [value for value in values if not optunas._contains(value)] == []


@pytest.mark.parametrize("log", [False, True])
def test_wide_integers_are_not_listed(log: bool) -> None:
    assert values_of(Distribution(int=(1, 4294967295), log=log)) is None
