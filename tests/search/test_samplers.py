"""Options of samplers and pruners have the types of Optuna's signatures before anything runs."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution

from kt_ray.config import PrunerConfig, SamplerConfig
from kt_ray.errors import ConfigError
from kt_ray.search.samplers import PRUNERS, SAMPLERS, build_pruner, build_sampler


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("tpe", "n_startup_trials", "abc"),
        ("tpe", "n_startup_trials", 10.0),
        ("tpe", "multivariate", "false"),
        ("cmaes", "sigma0", "1e-1"),
        ("nsga2", "population_size", "50"),
        ("gp", "deterministic_objective", 1),
    ],
)
def test_a_samplers_option_of_another_type_is_refused(name: str, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"search\.sampler\.options\.{option}"):
        build_sampler(SamplerConfig(name=name, options={option: value}), seed=0)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("median", "interval_steps", 1.5), ("hyperband", "reduction_factor", "3"), ("percentile", "percentile", "25")],
)
def test_a_pruners_option_of_another_type_is_refused(name: str, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"search\.pruner\.options\.{option}"):
        build_pruner(PrunerConfig(name=name, options={option: value}))


def test_options_of_the_right_types_are_taken() -> None:
    build_sampler(SamplerConfig(name="tpe", options={"n_startup_trials": 4, "group": True, "multivariate": True}), 0)
    build_sampler(SamplerConfig(name="cmaes", options={"sigma0": 1, "n_startup_trials": 2}), 0)
    build_pruner(PrunerConfig(name="successive_halving", options={"min_resource": "auto", "reduction_factor": 3}))
    build_pruner(PrunerConfig(name="percentile", options={"percentile": 25}))


@pytest.mark.parametrize(
    ("options", "random", "jointly"),
    [({}, 5, True), ({"n_startup_trials": 8}, 8, True), ({"multivariate": False}, 5, False)],
)
def test_tpe_draws_jointly_after_a_few_random_trials_unless_told_otherwise(
    options: dict[str, Any], random: int, jointly: bool
) -> None:
    space = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
    study = optuna.create_study(sampler=build_sampler(SamplerConfig(name="tpe", options=options), 0))
    for _ in range(random):
        assert not study.ask(space).relative_params
        study.add_trial(optuna.create_trial(params={"x": 0.1, "y": 0.1}, distributions=space, value=0.0))
    assert (study.ask(space).relative_params.keys() == space.keys()) is jointly


def test_every_kind_is_built_by_default() -> None:
    assert all(build_sampler(SamplerConfig(name=name), 0) for name in SAMPLERS)
    given = {"percentile": {"percentile": 25.0}, "patient": {"patience": 2}}
    assert all(build_pruner(PrunerConfig(name=name, options=given.get(name, {}))) for name in PRUNERS)
