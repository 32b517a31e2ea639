"""What `kt_ray._compat.optuna` takes from Optuna's private parts does what is said of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import pruners
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from kt_ray._compat.optuna import (
    EARLIER_TRIES,
    ENQUEUED,
    FIRST_TRY,
    RUNG,
    HyperbandByPlace,
    SafeCmaEsSampler,
    StudyWithoutFailures,
    with_cache,
    without_last_rungs,
)
from kt_ray.errors import StudyError


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_retries_have_the_attributes_that_optunas_own_readers_read() -> None:
    trial = optuna.create_trial(value=0.0, system_attrs={FIRST_TRY: 3, EARLIER_TRIES: [3, 5]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        assert RetryHeartbeatStaleTrialCallback.retried_trial_number(trial) == 3
        assert RetryHeartbeatStaleTrialCallback.retry_history(trial) == [3, 5]


def test_an_enqueued_trial_is_told_from_a_drawn_one() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.5})
    assert study.trials[0].system_attrs[ENQUEUED] == {"x": 0.5}


def test_the_cache_keeps_finished_trials(tmp_path: Path) -> None:
    storage = with_cache(RDBStorage(f"sqlite:///{tmp_path}/optuna.db"))
    study = optuna.create_study(storage=storage)
    study.add_trial(optuna.create_trial(value=1.0))
    first, second = (study.get_trials(deepcopy=False)[0] for _ in range(2))
    assert first is second


def test_successive_halving_decides_again_after_its_rungs_are_removed() -> None:
    study = optuna.create_study(pruner=pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2))
    trial = study.ask()
    trial.report(0.5, 1)
    trial.should_prune()
    frozen = study.trials[0]
    assert f"{RUNG}0" in frozen.system_attrs
    assert not any(name.startswith(RUNG) for name in without_last_rungs(frozen))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (pruners.MedianPruner, {"n_startup_trials": 1}),
        (pruners.PercentilePruner, {"percentile": 50.0, "n_startup_trials": 1}),
        (pruners.SuccessiveHalvingPruner, {"min_resource": 1}),
        (pruners.WilcoxonPruner, {}),
        (pruners.PatientPruner, {"wrapped_pruner": None, "patience": 0}),
    ],
)
def test_pruners_take_a_study_without_its_failures(
    kind: Callable[..., pruners.BasePruner], options: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = kind(**options)
    study = optuna.create_study(pruner=pruner, direction="maximize")
    study.add_trial(optuna.create_trial(state=TrialState.FAIL, intermediate_values={1: 9.0}))
    study.add_trial(optuna.create_trial(value=0.9, intermediate_values={1: 0.9, 2: 0.9}))
    trial = study.ask()
    for step in (1, 2):
        trial.report(0.5, step)
    view = StudyWithoutFailures(study)
    assert [each.state for each in view.trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert pruner.prune(view, study.trials[-1]) in (True, False)  # type: ignore[arg-type]


def test_hyperbands_bracket_follows_the_place() -> None:
    class First(HyperbandByPlace):
        def place(self, trial: FrozenTrial) -> int:
            return 0

    pruner = First(min_resource=1, max_resource=27)
    study = optuna.create_study(study_name="s", pruner=pruner)
    brackets = set()
    for _ in range(12):
        trial = study.ask()
        trial.report(1.0, 1)
        trial.should_prune()
        brackets.add(pruner._get_bracket_id(study, study.trials[-1]))
        study.tell(trial, 1.0)
    assert len(brackets) == 1
    assert pruner._get_bracket_id(study, optuna.create_trial(state=TrialState.FAIL)) == -1


@pytest.mark.parametrize("options", [{}, {"use_separable_cma": True}, {"with_margin": True}], ids=str)
def test_cmaes_reads_its_own_pickle_and_no_other(options: dict[str, bool]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = SafeCmaEsSampler(seed=0, popsize=4, warn_independent_sampling=False, **options)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: sum(trial.suggest_float(name, 0, 1) ** 2 for name in "xy"), n_trials=12)
    done = study.get_trials(deepcopy=False)
    held = [key for trial in done for key in trial.system_attrs if key.startswith(sampler._attr_key_optimizer)]
    assert held, "Optuna keeps the state of CMA-ES under other keys"
    assert sampler._restore_optimizer(done) is not None
    evil = b"cos\nsystem\n(S'true'\ntR.".hex()
    trial = optuna.create_trial(value=0.0, system_attrs={f"{sampler._attr_key_optimizer}:0": evil})
    with pytest.raises(StudyError):
        sampler._restore_optimizer([trial])
