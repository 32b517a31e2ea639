"""A study whose database says something else than what was written: told, never another number."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from kt_ray.errors import StudyError
from kt_ray.search.storage import open_storage
from kt_ray.search.study import SearchStudy
from kt_ray.search.summary import best_trial, summaries, trial_rows
from tests.search.stand_in import study_config

METRICS = {"accuracy_mean": 0.5, "loss": 0.1}


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A study of a complete, a pruned, a failed and a running trial."""
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    study = SearchStudy(study_config(), open_storage(url))
    study.describe()
    for pruned in (False, True):
        trial = study.ask()
        study.report(trial, 1, METRICS)
        study.end(trial, METRICS, 3.0, pruned=pruned)
    study.fail(study.ask().number, "lost", retry=False)
    study.report(study.ask(), 1, METRICS)
    return url


def test_what_was_written_is_read(url: str) -> None:
    assert [row["state"] for row in trial_rows(url, "s")] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert best_trial(url, "s")["value"] == 0.5
    SearchStudy(study_config(), open_storage(url)).ask()


@pytest.mark.parametrize(
    "change",
    [
        "update trial_values set value = 0.6 where trial_id = 1",
        "update trial_values set value = 0.6 where trial_id = 2",
        "update trial_intermediate_values set intermediate_value = 0.6 where trial_id = 2",
        "update trial_params set param_value = param_value * 1.001 where trial_id = 1",
        "update trial_params set param_name = 'training.learning_rats' where param_name = 'training.learning_rate'",
        "update trial_user_attributes set value_json = '4.0' where trial_id = 1 and key = 'seconds'",
        "update trial_user_attributes set key = 'secondt' where key = 'seconds'",
        "update trials set number = 7 where number = 1",
        "update trials set study_id = 9 where number = 0",
        "update studies set study_name = 't'",
        "update study_directions set direction = 'MINIMIZE'",
        "update study_user_attributes set value_json = replace(value_json, '6', '7') where key = 'search'",
    ],
)
def test_what_was_not_written_is_told(change: str, url: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as database:
        assert database.execute(change).rowcount > 0
        database.commit()
    for read in (trial_rows, best_trial):
        with pytest.raises(StudyError):
            read(url, "s")
    if "study_name" not in change:
        with pytest.raises(StudyError):
            summaries(url)
        with pytest.raises(StudyError):
            SearchStudy(study_config(), open_storage(url))


def test_trials_of_other_programs_are_read(url: str) -> None:
    study = optuna.load_study(study_name="s", storage=url)
    study.add_trial(optuna.create_trial(value=0.25))
    assert trial_rows(url, "s")[-1]["value"] == 0.25
