"""Values of discrete paths are those that Optuna contains, and are never listed without bound."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import optuna
import pytest

from kt_ray.config import Distribution, TrialConfig
from kt_ray.search.space import to_optuna, values_of
from kt_ray.search.space_problems import problems, step_problems

LOWS, SPANS, STEPS = (0.0, 0.1, -0.3, 1.0), (0.3, 0.7, 1.0, 2.1), (0.1, 0.05, 0.3, 0.07)


@pytest.mark.parametrize(("low", "span", "step"), list(itertools.product(LOWS, SPANS, STEPS)))
def test_stepped_values_are_contained(low: float, span: float, step: float) -> None:
    values = values_of(Distribution(float=(low, low + span), step=step))
    optunas = optuna.distributions.FloatDistribution(low, low + span, step=step)
    assert values
    assert [value for value in values if not optunas._contains(value)] == []


@pytest.mark.parametrize("bounds", [{"float": (0.0, 1.0), "step": 0.3}, {"int": (2, 9), "step": 4}])
def test_steps_that_do_not_end_at_the_bound_are_refused_in_a_file_and_drawn_in_silence(bounds: dict[str, Any]) -> None:
    path = "loss.kl" if "float" in bounds else "training.epochs"
    space = {path: Distribution.model_validate(bounds)}
    assert problems(space, TrialConfig()) == []  # a stored study goes on
    (fault,) = step_problems(space)
    assert fault.startswith(f"space.{path}: steps of ")
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_optuna(space, TrialConfig())(trial)[path] in (values_of(space[path]) or [])


@pytest.mark.parametrize("log", [False, True])
def test_wide_integers_are_not_listed(log: bool) -> None:
    assert values_of(Distribution(int=(1, 4294967295), log=log)) is None
