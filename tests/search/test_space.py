"""The search space: conditions, faults, size, and the values that Optuna gets to choose."""

from __future__ import annotations

import math
import pickle
from typing import Any

import optuna
import pytest

from kt_ray.config import Distribution, TrialConfig
from kt_ray.errors import ConfigError
from kt_ray.search.space import apply, count, size, to_optuna
from kt_ray.search.space_problems import problems

BASE = TrialConfig()


def space(**paths: dict[str, Any]) -> dict[str, Distribution]:
    """Distributions by path; `__` stands for a dot."""
    return {path.replace("__", "."): Distribution.model_validate(content) for path, content in paths.items()}


FAMILIES = space(
    translator__mixer__depth={"int": [2, 8], "step": 2, "when": {"translator.family": "mixer"}},
    translator__family={"categorical": ["mixer", "neuron_transformer"]},
    translator__neuron_transformer__width={
        "categorical": [32, 64],
        "when": {"translator.family": "neuron_transformer"},
    },
)


def test_a_good_space_has_no_problems() -> None:
    assert problems(FAMILIES, BASE) == []


def test_conditions_are_decided_by_what_was_drawn() -> None:
    function = to_optuna(FAMILIES, BASE)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        values = function(study.ask())
        seen.add(values["translator.family"])
        assert ("translator.mixer.depth" in values) == (values["translator.family"] == "mixer")
        assert ("translator.neuron_transformer.width" in values) == (values["translator.family"] != "mixer")
    assert seen == {"mixer", "neuron_transformer"}


def test_a_condition_on_a_path_that_is_not_searched_looks_at_the_base() -> None:
    tied = space(translator__mixer__depth={"int": [2, 4], "when": {"translator.family": ["mixer"]}})
    trial = optuna.trial.FixedTrial({"translator.mixer.depth": 3})
    assert to_optuna(tied, BASE)(trial) == {"translator.mixer.depth": 3}
    other = apply(BASE, {"translator.family": "neuron_transformer"})
    assert to_optuna(tied, other)(trial) == {}


def test_the_function_is_picklable() -> None:
    function = pickle.loads(pickle.dumps(to_optuna(FAMILIES, BASE)))
    assert function.distributions == to_optuna(FAMILIES, BASE).distributions


def test_steps_and_logs_reach_optuna() -> None:
    study = optuna.create_study()
    trial = study.ask()
    to_optuna(
        space(
            training__learning_rate={"float": [1e-4, 1e-2], "log": True},
            training__epochs={"int": [2, 10], "step": 4},
            augmentation__noise__std={"float": [0.0, 1.0], "step": 0.25},
        )
    )(trial)
    assert trial.distributions["training.learning_rate"].log
    assert trial.distributions["training.epochs"].step == 4
    assert trial.distributions["augmentation.noise.std"].step == 0.25


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ({"translator__famly": {"categorical": ["mixer"]}}, "translator.famly: unknown path; translator has "),
        ({"translator__mixer": {"categorical": [1]}}, "translator.mixer: unknown path"),
        ({"training__epochs": {"float": [1.5, 3]}}, "training.epochs: input should be a valid integer, got 1.5"),
        ({"training__epochs": {"int": [0, 3]}}, "training.epochs: input should be greater than 0, got 0"),
        ({"training__epochs": {"int": [1, 3], "step": 0.5}}, "`step` of an int must be whole, got 0.5"),
        ({"translator__family": {"categorical": ["mixer", "x"]}}, "no family is called 'x'"),
        (
            {"translator__mixer__depth": {"int": [1, 2], "when": {"translator.family": "neuron_transformer"}}},
            "`when` never holds: translator.family is 'mixer' in `trial`",
        ),
        (
            {
                "translator__family": {"categorical": ["mixer"]},
                "translator__mixer__depth": {"int": [1, 2], "when": {"translator.family": "neuron_transformer"}},
            },
            "`when` never holds: translator.family is one of ['mixer'], not 'neuron_transformer'",
        ),
        ({"training__epochs": {"int": [1, 3], "when": {"trainin.seed": 1}}}, "`when` names an unknown path"),
        (
            {
                "training__epochs": {"int": [1, 3], "when": {"training.batch_size": 1}},
                "training__batch_size": {"int": [1, 3], "when": {"training.epochs": 1}},
            },
            "go in a circle",
        ),
        (
            {
                "training__learning_rate": {"float": [0.1, 0.2]},
                "training__epochs": {"int": [1, 3], "when": {"training.learning_rate": 0.1}},
            },
            "only discrete paths can decide",
        ),
        (
            {"translator__neuron_transformer__width": {"int": [30, 64]}},
            "random points of the space are not valid: translator.neuron_transformer: width must be a multiple",
        ),
    ],
)
def test_faults_are_named(paths: dict[str, Any], said: str) -> None:
    assert any(said in problem for problem in problems(space(**paths), BASE))


def test_all_faults_are_told_at_once() -> None:
    assert len(problems(space(a={"int": [1, 2]}, b={"int": [1, 2]}, training__epochs={"int": [0, 2]}), BASE)) == 3


def test_the_size_counts_conditional_points_once() -> None:
    assert count(FAMILIES, BASE) == 4 + 2
    assert size(FAMILIES, BASE) == "6 points over 3 paths"
    endless = FAMILIES | space(training__learning_rate={"float": [0.1, 0.2]})
    assert math.isinf(count(endless, BASE))
    assert size(endless) == "endless: 1 of 4 paths continuous"


def test_every_point_of_a_discrete_space_once() -> None:
    points = list(to_optuna(FAMILIES, BASE).points())
    assert len(points) == 6
    assert len({tuple(sorted(point.items())) for point in points}) == 6


def test_values_are_applied_and_validated_again() -> None:
    assert apply(BASE, {"training.epochs": 3}).training.epochs == 3
    with pytest.raises(ConfigError, match=r"training\.epochs.*greater than 0, got 0"):
        apply(BASE, {"training.epochs": 0})
