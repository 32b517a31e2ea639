"""The study without Ray: every sampler and pruner, drivers that die, constraints, several objectives, warm starts."""

from __future__ import annotations

import contextlib
import itertools
import random
from typing import Any, cast

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from kt_ray.config import StudyConfig
from kt_ray.errors import ConfigError, StudyError
from kt_ray.search.retries import lineages, select_champion
from kt_ray.search.samplers import ORDINAL
from kt_ray.search.study import SearchStudy
from kt_ray.search.study_identity import check_space, check_unchanged
from tests.search.stand_in import study_config

EPOCHS = 6


class Died(Exception):
    """The driver is no more."""


def driver(config: StudyConfig, storage: BaseStorage, *, dies_after: int | None = None) -> SearchStudy:
    """Search as a driver does, a trial at a time, with numbers that follow from the values. Dies after some reports."""
    study = SearchStudy(config, storage)
    study.describe()
    study.recover("its driver died")
    study.enqueue(config.search.points)
    reports = 0
    while study.finished() < config.search.trials and not study.exhausted:
        candidate = study.ask()
        metrics: dict[str, float] = {}
        pruned = bool(candidate.step) and study.should_prune(candidate)
        for step in range(candidate.step + 1, EPOCHS + 1):
            if pruned:
                break
            metrics = numbers(candidate.values, step)
            pruned = study.report(candidate, step, metrics, last=step == EPOCHS)
            reports += 1
            if reports == dies_after:
                raise Died
        study.end(candidate, metrics or numbers(candidate.values, candidate.step), 1.0, pruned=pruned)
    return study


def numbers(values: dict[str, Any], step: int) -> dict[str, float]:
    """Accuracy that rises with the epochs, cost that rises with noise; some wobble, always the same."""
    rate = values.get("training.learning_rate", 1e-3)
    noise = values.get("augmentation.noise.std", 0.1)
    wobble = random.Random(f"{rate}{noise}{step}").uniform(-0.02, 0.02)
    accuracy = (1 - abs(rate - 0.02) * 8) * step / EPOCHS - noise + wobble
    return {"accuracy_mean": accuracy, "parameters": 1000 * (1 - noise), "loss": 1 - accuracy}


def searched(config: StudyConfig, storage: BaseStorage, *, deaths: int = 0, every: int = 11) -> SearchStudy:
    """The study brought to its end by drivers that die `deaths` times."""
    for _ in range(deaths):
        with pytest.raises(Died):
            driver(config, storage, dies_after=every)
    return driver(config, storage)


def outcome(study: SearchStudy) -> list[tuple[Any, ...]]:
    """What was found, lineage by lineage."""
    return [
        (trial.state, trial.values, trial.params, trial.intermediate_values)
        for _, trial in sorted(study.lineages().items())
    ]


@pytest.fixture
def storage() -> BaseStorage:
    """What outlives the drivers. In memory, for speed; the runner's tests are on SQLite."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return InMemoryStorage()


SAMPLERS = [
    {"name": "tpe", "options": {"n_startup_trials": 4}},
    {"name": "tpe", "options": {"n_startup_trials": 4, "multivariate": True, "group": True}},
    {"name": "gp", "options": {"n_startup_trials": 4}},
    {"name": "cmaes", "options": {"n_startup_trials": 3}},
    {"name": "nsga2", "options": {"population_size": 4}},
    {"name": "nsga3", "options": {"population_size": 4}},
    {"name": "qmc"},
    {"name": "random"},
]
PRUNERS: list[dict[str, Any]] = [
    {"name": "none"},
    {"name": "median", "options": {"n_startup_trials": 3}},
    {"name": "percentile", "options": {"percentile": 40.0, "n_startup_trials": 3}},
    {"name": "successive_halving", "options": {"min_resource": 1, "reduction_factor": 2}},
    {"name": "hyperband", "options": {"min_resource": 1, "max_resource": EPOCHS, "reduction_factor": 2}},
    {"name": "wilcoxon", "options": {"p_threshold": 0.3}},
    {"name": "patient", "options": {"patience": 0}, "pruner": {"name": "median", "options": {"n_startup_trials": 2}}},
]


@pytest.mark.parametrize(
    "sampler", SAMPLERS, ids=lambda sampler: "-".join([sampler["name"], *sampler.get("options", {})])
)
def test_every_sampler_goes_on_after_its_driver_died(sampler: dict[str, Any], storage: BaseStorage) -> None:
    config = study_config(trials=12, sampler=sampler, pruner=PRUNERS[1])
    whole = searched(config, InMemoryStorage())
    cut = searched(config, InMemoryStorage(), deaths=2)
    assert len(cut.lineages()) == 12
    assert {trial.state for trial in cut.lineages().values()} <= {TrialState.COMPLETE, TrialState.PRUNED}
    failed = [trial for trial in cut.trials() if trial.state is TrialState.FAIL]
    assert len(failed) == 2
    if sampler["name"] != "cmaes":  # Optuna's adds the trial's number to its seed
        assert outcome(cut) == outcome(whole)


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: pruner["name"])
def test_every_pruner_decides_the_same_after_its_driver_died(pruner: dict[str, Any], storage: BaseStorage) -> None:
    config = study_config(trials=14, pruner=pruner, sampler={"name": "random"})
    whole = searched(config, InMemoryStorage())
    cut = searched(config, InMemoryStorage(), deaths=3, every=9)
    assert outcome(cut) == outcome(whole)
    pruned = [trial for trial in whole.trials() if trial.state is TrialState.PRUNED]
    assert bool(pruned) == (pruner["name"] not in ("none", "patient"))  # accuracy always rises here


def test_a_driver_that_dies_between_report_and_pruning_prunes_later(storage: BaseStorage) -> None:
    config = study_config(trials=14, pruner=PRUNERS[1], sampler={"name": "random"})
    whole = searched(config, InMemoryStorage())
    for every in range(1, 28, 2):
        assert outcome(searched(config, InMemoryStorage(), deaths=1, every=every)) == outcome(whole)


def test_a_driver_that_dies_while_drawing_leaves_no_lineage(storage: BaseStorage) -> None:
    config = study_config(trials=3)
    study = SearchStudy(config, storage)
    trial = study.optuna.ask()
    trial.suggest_float("augmentation.noise.std", 0.0, 0.5)
    after = searched(config, storage)
    assert sorted(after.lineages()) == [1, 2, 3]
    assert outcome(after) == outcome(searched(config, InMemoryStorage()))
    assert after.trials()[0].state is TrialState.FAIL


def test_a_driver_that_dies_while_failing_a_trial_asks_for_it_once(storage: BaseStorage) -> None:
    config = study_config(trials=2)
    study = SearchStudy(config, storage)
    candidate = study.ask()
    study._ask_again(study._frozen(candidate.number), {})  # the driver dies here, before it tells FAIL
    again = SearchStudy(config, storage)
    assert again.recover("its driver died") == [0]
    assert [trial.state for trial in again.trials()] == [TrialState.FAIL, TrialState.WAITING]
    assert again.recover("its driver died") == []


def test_a_grid_takes_every_point_once_and_ends(storage: BaseStorage) -> None:
    config = StudyConfig.model_validate(
        study_config(trials=50, sampler={"name": "grid"}).model_dump()
        | {
            "space": {
                "translator.family": {"categorical": ["mixer", "neuron_transformer"]},
                "augmentation.noise.std": {"float": [0.0, 0.5], "step": 0.25, "when": {"translator.family": "mixer"}},
            }
        }
    )
    study = searched(config, storage, deaths=2, every=7)
    points = [tuple(sorted(trial.params.items())) for trial in study.lineages().values()]
    assert len(points) == len(set(points)) == 4
    assert study.exhausted


def test_a_grid_needs_a_discrete_space(storage: BaseStorage) -> None:
    with pytest.raises(ConfigError, match="a grid needs a categorical, an int or a float with a `step`"):
        driver(study_config(sampler={"name": "grid"}), storage)


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_constraints_steer_and_decide_the_champion(name: str, storage: BaseStorage) -> None:
    options = {"n_startup_trials": 5} if name != "nsga2" else {"population_size": 5}
    constraints = ["parameters <= 900"]
    config = study_config(
        trials=16, sampler={"name": name, "options": options}, constraints=constraints, pruner={"name": "none"}
    )
    study = searched(config, storage, deaths=1)
    trials = list(study.lineages().values())
    within = [trial for trial in trials if trial.user_attrs["metrics"]["parameters"] <= 900]
    best = study.best()
    assert best is not None
    assert best.value == max(trial.value for trial in within)
    assert {trial.user_attrs["metrics"]["parameters"] <= 900 for trial in trials} == {True, False}
    late = trials[10:]
    assert sum(trial.user_attrs["metrics"]["parameters"] <= 900 for trial in late) > len(late) / 2


def test_constraints_are_parsed_and_refused() -> None:
    constraint = study_config(constraints=["parameters <= 1e6"]).search.constraints[0]
    assert (constraint.metric, constraint.sign, constraint.bound) == ("parameters", "<=", 1e6)
    assert constraint.excess({"parameters": 1e6 + 1}) == 1
    assert constraint.excess({}) == float("inf")
    with pytest.raises(ValueError, match="expected a bound such as `parameters <= 1e6`, got 'parameters < 3'"):
        study_config(constraints=["parameters < 3"])
    with pytest.raises(ValueError, match="qmc knows no constraints"):
        study_config(constraints=["parameters <= 3"], sampler={"name": "qmc"})


@pytest.mark.parametrize("sampler", [SAMPLERS[0], SAMPLERS[4], SAMPLERS[5]], ids=lambda sampler: sampler["name"])
def test_several_objectives(sampler: dict[str, Any], storage: BaseStorage) -> None:
    objectives = [{"metric": "accuracy_mean"}, {"metric": "parameters", "direction": "minimize"}]
    config = study_config(trials=12, sampler=sampler, objectives=objectives, tolerance=0.3)
    whole = searched(config, InMemoryStorage())
    cut = searched(config, InMemoryStorage(), deaths=2)
    assert outcome(cut) == outcome(whole)
    best = select_champion(cut.optuna)
    assert best is not None
    top = max(trial.values[0] for trial in cut.lineages().values())
    near = [trial for trial in cut.lineages().values() if trial.values[0] >= top - 0.3]
    assert best.values[1] == min(trial.values[1] for trial in near)


def test_points_are_tried_first_and_once(storage: BaseStorage) -> None:
    points = [{"training.learning_rate": 0.02, "augmentation.noise.std": 0.0}, {"training.learning_rate": 0.01}]
    config = study_config(trials=4, points=points)
    study = searched(config, storage, deaths=2, every=3)
    params = [trial.params for _, trial in sorted(study.lineages().items())]
    assert params[0] == points[0]
    assert params[1]["training.learning_rate"] == 0.01
    assert len(params) == 4


def test_an_objective_that_is_missing_or_nan_is_an_error(storage: BaseStorage) -> None:
    study = SearchStudy(study_config(), storage)
    with pytest.raises(ValueError, match="objective accuracy_mean is missing; reported: loss"):
        study.report(study.ask(), 1, {"loss": 0.0})
    with pytest.raises(ValueError, match="objective accuracy_mean is NaN"):
        study.report(study.ask(), 1, {"accuracy_mean": float("nan")})


def test_an_objective_cannot_change_its_direction(storage: BaseStorage) -> None:
    SearchStudy(study_config(), storage)
    turned = study_config(objectives=[{"metric": "loss", "direction": "minimize"}])
    with pytest.raises(StudyError, match=r"has the directions \['maximize'\], the study file \['minimize'\]"):
        SearchStudy(turned, storage)


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"sampler": {"name": "tpe", "options": {"startups": 3}}}, "search.sampler: tpe with .*startups"),
        ({"sampler": {"name": "tpe", "options": {"seed": 3}}}, "set search.seed, which seeds every sampler"),
        ({"pruner": {"name": "percentile", "options": {"percentile": 200}}}, "search.pruner: percentile with .*200"),
        ({"pruner": {"name": "percentile"}}, "search.pruner: percentile with .*percentile"),
    ],
)
def test_wrong_options_are_named(search: dict[str, Any], said: str, storage: BaseStorage) -> None:
    with pytest.raises(ConfigError, match=said):
        SearchStudy(study_config(**search), storage)


def test_a_changed_zoo_dataset_or_base_is_refused_and_changed_code_told(storage: BaseStorage) -> None:
    study = SearchStudy(study_config(), storage).optuna
    first = {"code": "a", "zoo": "z", "dataset": "d", "trial": {"training.epochs": 4}}
    assert check_unchanged(study, first, accept=False) == []
    (told,) = check_unchanged(study, first | {"code": "b"}, accept=False)
    assert told.startswith("code:")
    other = first | {"code": "b", "zoo": "y", "trial": {"training.epochs": 5}}
    with pytest.raises(StudyError, match=r"zoo: z before, y now; trial\.training\.epochs: 4 before, 5 now.*--accept"):
        check_unchanged(study, other, accept=False)
    assert len(check_unchanged(study, other, accept=True)) == 2
    assert check_unchanged(study, other, accept=False) == []
    later = other | {"trial": {"training.epochs": 5, "training.new": 1}}
    assert check_unchanged(study, later, accept=False, defaults={"training.new": 1}) == []
    newest = later | {"trial": {"training.epochs": 5, "training.new": 1, "training.newer": 3}}
    with pytest.raises(StudyError, match=r"trial\.training\.newer"):
        check_unchanged(study, newest, accept=False, defaults={"training.newer": 1})


def test_bounds_of_a_space_may_change_and_choices_may_not(storage: BaseStorage) -> None:
    def config(space: dict[str, Any]) -> StudyConfig:
        return StudyConfig.model_validate(study_config(trials=2).model_dump() | {"space": space})

    study = searched(config({"training.batch_size": {"categorical": [8, 16]}}), storage)
    with pytest.raises(StudyError, match=r"training\.batch_size: .*choices \[8, 16\], .*choices \[8, 32\]"):
        check_space(config({"training.batch_size": {"categorical": [8, 32]}}), study.trials())
    study = searched(config({"training.batch_size": {"int": [8, 16]}}), InMemoryStorage())
    check_space(config({"training.batch_size": {"int": [1, 64]}}), study.trials())


def test_retries_keep_optunas_own_record_of_them(storage: BaseStorage) -> None:
    study = searched(study_config(trials=2), storage, deaths=2, every=1)
    last = study.lineages()[0]
    assert (last.system_attrs["failed_trial"], last.system_attrs["retry_history"]) == (0, [0, 1])
    assert last.user_attrs[ORDINAL] == 0
    assert lineages(study.trials()).keys() == {0, 3}


class Raising:
    """A storage that raises `error` after its write number `writes`, which is done."""

    def __init__(self, storage: BaseStorage, writes: int, error: Exception) -> None:
        self._storage = storage
        self.writes = writes
        self._error = error

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._storage, name)
        if not name.startswith(("create_", "set_")):
            return attribute

        def write(*args: Any, **kwargs: Any) -> Any:
            answer = attribute(*args, **kwargs)
            self.writes -= 1
            if self.writes == 0:
                raise self._error
            return answer

        return write


@pytest.mark.parametrize(
    "search",
    [
        {"pruner": PRUNERS[3]},
        {"pruner": PRUNERS[4]},
        {"points": [{"training.learning_rate": 0.02}]},
    ],
    ids=["successive_halving", "hyperband", "points"],
)
def test_a_driver_may_die_after_any_write(search: dict[str, Any], storage: BaseStorage) -> None:
    config = study_config(trials=8, sampler={"name": "random"}, **search)
    whole = outcome(searched(config, InMemoryStorage()))
    for writes in itertools.count(1):
        storage = InMemoryStorage()
        dying = Raising(storage, writes, Died())
        with contextlib.suppress(Died):
            driver(config, cast(BaseStorage, dying))
        assert outcome(driver(config, storage)) == whole, f"died after write {writes}"
        if dying.writes > 0:
            break
