"""What a study holds, read from its storage alone."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from pyarrow import parquet

from kt_ray.config import TrialConfig
from kt_ray.errors import StudyError
from kt_ray.search.lease import hold_lease
from kt_ray.search.storage import open_storage
from kt_ray.search.study import SearchStudy
from kt_ray.search.summary import (
    best_trial,
    export_trials,
    importance_rows,
    load_study,
    pareto_rows,
    summaries,
    summarise,
    trial_rows,
    varied_parameters,
)
from kt_ray.studies.extension import point_of_trial, points_of_study
from tests.search.stand_in import study_config
from tests.search.test_study import PRUNERS, searched

OBJECTIVES = [{"metric": "accuracy_mean"}, {"metric": "parameters", "direction": "minimize"}]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two studies: `s` with pruning, whose driver died once, and `two` of two objectives."""
    url = f"sqlite:///{tmp_path_factory.mktemp('summary')}/optuna.db"
    searched(study_config(trials=8, pruner=PRUNERS[1], sampler={"name": "random"}), open_storage(url), deaths=1)
    searched(study_config("two", trials=6, objectives=OBJECTIVES, sampler={"name": "random"}), open_storage(url))
    return url


def test_a_summary_counts_lineages(url: str) -> None:
    first, second = summaries(url)
    assert (first.name, second.name) == ("s", "two")
    assert first.complete + first.pruned == first.trials == 8
    assert (first.failed, first.running, first.waiting) == (0, 0, 0)
    assert first.device_hours == pytest.approx(8 / 3600)
    assert first.device == "CPU"
    assert first.driver is None
    assert json.loads(json.dumps(asdict(first), default=str))["name"] == "s"


def test_a_summary_names_the_driver(url: str) -> None:
    study = load_study(url, "s")
    with hold_lease(study):
        assert str(summarise(study).driver).startswith("process ")


def test_rows_tell_every_lineage(url: str) -> None:
    rows = trial_rows(url, "s")
    assert len(rows) == 8
    assert sorted(row["tries"] for row in rows) == [1] * 7 + [2]
    assert {"trial", "state", "value", "epochs", "reason", "training.learning_rate"} <= rows[0].keys()
    best = best_trial(url, "s")
    assert best["value"] == max(row["value"] for row in rows if row["state"] == "COMPLETE")


def test_parameters_that_vary_most_come_first() -> None:
    rows = [
        {"trial": n, "reason": None, "same": 1.0, "kind": "ab"[n % 2], "near": 1 + n, "far": 10**n} for n in range(5)
    ]
    assert varied_parameters(rows) == ["far", "near", "kind", "same"]


def test_the_pareto_front_is_beaten_by_nobody(url: str) -> None:
    rows, front = trial_rows(url, "two"), pareto_rows(url, "two")
    assert 1 <= len(front) <= len(rows)
    for row in front:
        better = [r for r in rows if r["value"] >= row["value"] and r["parameters"] <= row["parameters"]]
        assert [r["trial"] for r in better] == [row["trial"]]
    assert [row["value"] for row in front] == sorted((row["value"] for row in front), reverse=True)


def test_importance_sums_to_one(url: str) -> None:
    rows = importance_rows(url, "s")
    assert {row["parameter"] for row in rows} == {"training.learning_rate", "augmentation.noise.std"}
    assert sum(row["importance"] for row in rows) == pytest.approx(1)
    assert importance_rows(url, "s") == rows


def test_exports_hold_the_same_rows(url: str, tmp_path: Path) -> None:
    rows = trial_rows(url, "s")
    for suffix in ("csv", "parquet", "json"):
        assert export_trials(url, "s", tmp_path / f"trials.{suffix}") == 8
    assert json.loads((tmp_path / "trials.json").read_text()) == rows
    assert parquet.read_table(tmp_path / "trials.parquet").to_pylist() == rows
    with (tmp_path / "trials.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [float(row["value"]) for row in read] == pytest.approx([row["value"] for row in rows])
    with pytest.raises(StudyError, match=r"exported as \.csv, \.parquet or \.json"):
        export_trials(url, "s", tmp_path / "trials.xls")


def test_what_is_missing_is_named(url: str) -> None:
    with pytest.raises(StudyError, match=r"no study 'x' in sqlite://.*; there are: s, two"):
        load_study(url, "x")
    storage = open_storage(url)
    SearchStudy(study_config("empty"), storage)
    try:
        for function in (best_trial, pareto_rows):
            with pytest.raises(StudyError, match="no trial of empty is complete; `kt-ray trials empty`"):
                function(url, "empty")
        with pytest.raises(StudyError, match="importance needs two complete trials or more; empty has 0"):
            importance_rows(url, "empty")
    finally:
        storage.delete_study(storage.get_study_id_from_name("empty"))


def test_constraints_that_no_trial_keeps_are_told_with_the_nearest(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    constraints = ["accuracy_mean >= 2", "unreported <= 1"]
    config = study_config("tight", trials=3, sampler={"name": "random"}, constraints=constraints)
    searched(config, open_storage(url))
    for read in (best_trial, pareto_rows):
        with pytest.raises(StudyError, match=r"keeps the constraints; the nearest of 3 .*no such metric"):
            read(url, "tight")


def test_another_studys_best_points_that_lie_in_the_space(url: str) -> None:
    space = {"training.learning_rate": study_config().space["training.learning_rate"]}
    points = points_of_study(url, "s", space)
    complete = sorted((r for r in trial_rows(url, "s") if r["state"] == "COMPLETE"), key=lambda row: -row["value"])
    assert points == [{"training.learning_rate": row["training.learning_rate"]} for row in complete[:5]]
    elsewhere = {"translator.mixer.depth": study_config().space["training.learning_rate"]}
    with pytest.raises(StudyError, match="no complete trial of s has a parameter that lies in the space"):
        points_of_study(url, "s", elsewhere)


def test_the_point_of_a_trial() -> None:
    space = study_config().space
    assert point_of_trial(TrialConfig(), space) == {"training.learning_rate": 1e-3, "augmentation.noise.std": 0.0}
    loud = TrialConfig.model_validate({"augmentation": {"noise": {"std": 3.0}}})
    assert point_of_trial(loud, space) == {"training.learning_rate": 1e-3}
