"""Trials as a storage holds them: which belong together, and which one is the champion."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from kt_ray.errors import StudyError
from kt_ray.search.integrity import SEARCH
from kt_ray.search.retries import METRICS, lineage_of, lineages, select_champion
from kt_ray.search.samplers import ORDINAL


def complete(*values: float, cost: float = 0.0) -> FrozenTrial:
    return optuna.create_trial(values=values, user_attrs={ORDINAL: 0, METRICS: {"cost": cost}})


def study_of(trials: list[FrozenTrial], directions: tuple[str, ...] = ("maximize",), **search: object) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=directions)
    study.set_user_attr(SEARCH, search)
    study.add_trials(trials)
    return study


def test_a_retry_takes_the_place_of_the_trial_before_it() -> None:
    failed = optuna.create_trial(state=TrialState.FAIL, user_attrs={ORDINAL: 0})
    undrawn = optuna.create_trial(state=TrialState.FAIL)
    again = optuna.create_trial(value=0.5, user_attrs={ORDINAL: 0}, system_attrs={"failed_trial": 0})
    last = lineages(study_of([failed, undrawn, again]).trials)
    assert {lineage: trial.number for lineage, trial in last.items()} == {0: 2}


@pytest.mark.parametrize("first", [7, -1, "../../etc"])
def test_a_lineage_is_the_number_of_an_earlier_trial(first: object) -> None:
    lying = optuna.create_trial(value=0.5, system_attrs={"failed_trial": first})
    with pytest.raises(StudyError, match=r"trial 0 says that it tries trial .* again; expected a number"):
        lineage_of(study_of([lying]).trials[0])


def test_of_equals_the_earlier_is_champion() -> None:
    best = select_champion(study_of([complete(0.5), complete(0.9), complete(0.9)]))
    assert best is not None
    assert best.number == 1


def test_the_champion_keeps_the_constraints_and_may_be_nobody() -> None:
    study = study_of([complete(0.9, cost=3.0), complete(0.5, cost=1.0)], constraints=["cost <= 2"])
    best = select_champion(study)
    assert best is not None
    assert best.number == 1
    assert select_champion(study_of([complete(0.9, cost=3.0)], constraints=["cost <= 2"])) is None


@pytest.mark.parametrize(("tolerance", "number"), [(0.0, 0), (0.1, 1)])
def test_the_next_objective_decides_among_those_within_the_tolerance(tolerance: float, number: int) -> None:
    trials = [complete(0.90, 50.0), complete(0.85, 10.0), complete(0.5, 1.0)]
    best = select_champion(study_of(trials, ("maximize", "minimize"), tolerance=tolerance))
    assert best is not None
    assert best.number == number
