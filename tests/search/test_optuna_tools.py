"""Other programs on a study's storage: plain Optuna and optuna-dashboard."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from optuna_dashboard import wsgi
from werkzeug.test import Client

from kt_ray.config import StudyConfig
from kt_ray.search.storage import open_storage
from tests.search.stand_in import study_config
from tests.search.test_study import driver

CONSTRAINT = "parameters <= 1e+06"


@pytest.fixture
def config() -> StudyConfig:
    return study_config(trials=3, constraints=[CONSTRAINT])


@pytest.fixture
def url(config: StudyConfig, tmp_path: Path) -> str:
    """The storage of a study that was searched."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    driver(config, open_storage(url))
    return url


def test_plain_optuna_reads_the_study(url: str, config: StudyConfig) -> None:
    plain = optuna.load_study(study_name=config.name, storage=url)
    assert plain.metric_names == ["accuracy_mean"]
    assert plain.best_trial.value == max(trial.value for trial in plain.trials if trial.value is not None)
    complete = plain.get_trials(states=[TrialState.COMPLETE])
    assert [set(trial.constraints) for trial in complete] == [{CONSTRAINT}] * len(complete)


def test_a_point_queued_in_plain_optuna_is_the_next_trial(url: str, config: StudyConfig) -> None:
    plain = optuna.load_study(study_name=config.name, storage=url)
    point = dict(plain.best_params)
    plain.enqueue_trial(point)
    more = config.model_copy(update={"search": config.search.model_copy(update={"trials": 4})})
    driver(more, open_storage(url))
    assert optuna.load_study(study_name=config.name, storage=url).trials[-1].params == point


@pytest.mark.parametrize("level", [optuna.logging.DEBUG, optuna.logging.WARNING, optuna.logging.CRITICAL])
def test_the_level_of_optunas_logger_is_left_alone(level: int, config: StudyConfig, tmp_path: Path) -> None:
    optuna.logging.set_verbosity(level)
    driver(config, open_storage(f"sqlite:///{tmp_path / 'optuna.db'}"))
    assert optuna.logging.get_verbosity() == level


def test_optuna_dashboard_shows_the_study(url: str, config: StudyConfig) -> None:
    client = Client(wsgi(url))
    (summary,) = client.get("/api/studies").json["study_summaries"]
    study = client.get(f"/api/studies/{summary['study_id']}").json
    trials = optuna.load_study(study_name=config.name, storage=url).trials
    assert (summary["study_name"], summary["directions"]) == (config.name, ["maximize"])
    assert study["objective_names"] == ["accuracy_mean"]
    assert [trial["values"] for trial in study["trials"]] == [trial.values for trial in trials]
    attributes = [{entry["key"]: entry["value"] for entry in trial["user_attrs"]} for trial in study["trials"]]
    assert [float(shown[CONSTRAINT]) for shown in attributes] == [trial.constraints[CONSTRAINT] for trial in trials]
