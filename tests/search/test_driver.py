"""The driver's side of a search, without Ray: budgets, deaths of workers, a translator killed in mid-trial.

Studies in memory or SQLite, runs in a real MLflow store.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from kt_ray.config import DatasetConfig, MemberCounts, StudyConfig, TrialConfig
from kt_ray.data import load_dataset
from kt_ray.networks import PaperArchitecture
from kt_ray.search import driver as driver_module
from kt_ray.search.driver import SearchDriver
from kt_ray.search.retries import lineages
from kt_ray.search.storage import open_storage
from kt_ray.search.worker import Report, Training
from kt_ray.tracking.tracker import Tracker
from kt_ray.translation.training import TranslatorTraining
from kt_ray.zoo.untrained import untrained_zoo
from tests.search.stand_in import StandIn, study_config
from tests.search.worker import begin, start_driver, work

REPOSITORY = Path(__file__).parents[2]
OUT_OF_MEMORY = Report(0, failure="out of memory: MemoryError", infrastructure=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the MLflow store of these tests lies."""
    return tmp_path_factory.mktemp("mlflow")


def open_tracker(root: Path) -> Tracker:
    return Tracker(f"sqlite:///{root}/mlflow.db", "kt_ray", f"file://{root}/artifacts")


@pytest.fixture(scope="module")
def tracker(root: Path) -> Tracker:
    return open_tracker(root)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "BACK_OFF", (0.0, 0.0))


def stand_in(trial: TrialConfig) -> Training:
    return StandIn(trial, None, None, "cpu")


def hour(epoch: int, *, finished: bool = False) -> Report:
    """A report of a trial that has run for `epoch` hours."""
    return Report(epoch, {"accuracy_mean": 0.1 * epoch}, 3600.0 * epoch, finished)


def runs(tracker: Tracker, study: str) -> dict[int, mlflow.entities.Run]:
    """The trials' runs of a study, by lineage."""
    condition = f"tags.`kt_ray.kind` = 'trial' and tags.`kt_ray.study` = '{study}'"
    found = tracker.client.search_runs([tracker.experiment_id], condition)
    by_lineage = {int(run.data.tags["kt_ray.lineage"]): run for run in found}
    assert len(by_lineage) == len(found)
    return by_lineage


def states(driver: SearchDriver) -> list[TrialState]:
    return [trial.state for trial in driver._study.trials()]


def test_no_trial_starts_after_the_hours_and_the_one_that_runs_ends(tracker: Tracker, tmp_path: Path) -> None:
    config = study_config("hours", hours=1e-9)
    driver = start_driver(config, InMemoryStorage(), tracker, tmp_path)
    driver._budget.search = config.search.model_copy(update={"hours": 1000.0})
    session = begin(driver, stand_in)
    driver._budget.search = config.search  # the hours pass
    assert driver.limit == "search.hours=1e-09 are used up"
    assert not driver.finished
    while driver.on_report("t", session.advance()):
        pass
    driver.on_trial_end("t", lost=False)
    assert driver.finished
    assert driver.next_trial("t") is None
    assert states(driver) == [TrialState.COMPLETE]


def test_device_hours_count_what_runs_and_what_earlier_searches_used(tracker: Tracker, tmp_path: Path) -> None:
    storage = InMemoryStorage()
    resources = {"cpus": 2.0}
    config = study_config("devices", device_hours=9.0, resources=resources, pruner={"name": "none"})
    driver = start_driver(config, storage, tracker, tmp_path)
    begin(driver, stand_in)
    for epoch in (1, 2, 3):
        assert driver.on_report("t", hour(epoch))
    assert driver.limit is None
    driver.on_report("t", hour(4, finished=True))
    driver.on_trial_end("t", lost=False)
    begin(driver, stand_in)
    driver.on_report("t", hour(1))  # 2 CPUs for 4 hours and 1 hour: 10 CPU-hours
    assert driver.limit == "search.device_hours=9 are used up"
    driver.interrupt("SIGTERM")
    assert start_driver(config, storage, tracker, tmp_path).finished
    more = study_config("devices", device_hours=11.0, resources=resources)
    assert start_driver(more, storage, tracker, tmp_path).limit is None
    assert runs(tracker, "devices")[0].data.metrics["device_hours"] == 8.0


def test_a_trial_out_of_memory_is_named_so_and_tried_again_as_often_as_allowed(
    tracker: Tracker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = study_config("memory", trials=1, retries=2)
    driver = start_driver(config, InMemoryStorage(), tracker, tmp_path)
    for tries in (1, 2, 3):
        session = begin(driver, stand_in)
        assert driver.on_report("t", session.advance()) or tries > 1
        assert not driver.on_report("t", OUT_OF_MEMORY)
        driver.on_trial_end("t", lost=False)
    assert states(driver)[:3] == [TrialState.FAIL] * 3
    assert {trial.user_attrs["reason"] for trial in driver._study.trials()[:3]} == {"out of memory: MemoryError"}
    assert "trial 0: out of memory: MemoryError; it is tried again" in caplog.text
    run = runs(tracker, "memory")[0]
    assert (run.info.status, run.data.tags["kt_ray.reason"]) == ("FAILED", "out of memory: MemoryError")
    work(driver, stand_in)  # another trial takes its place
    assert runs(tracker, "memory").keys() == {0, 3}


def test_a_retry_that_a_budget_leaves_over_is_nobodys_and_goes_on_later(tracker: Tracker, tmp_path: Path) -> None:
    storage = InMemoryStorage()
    config = study_config("left", trials=1, device_hours=1.5, pruner={"name": "none"})
    driver = start_driver(config, storage, tracker, tmp_path)
    session = begin(driver, stand_in)
    session.advance()
    driver.on_report("t", hour(1))
    driver.on_report("t", hour(2))
    driver.on_worker_error("t", "")
    driver.on_trial_end("t", lost=True)
    assert states(driver) == [TrialState.FAIL, TrialState.WAITING]
    assert driver.finished
    assert driver.limit == "search.device_hours=1.5 are used up"
    run = runs(tracker, "left")[0]
    assert (run.info.status, run.data.tags["kt_ray.reason"]) == ("KILLED", "worker lost")
    later = start_driver(study_config("left", trials=1, device_hours=9.0), storage, tracker, tmp_path)
    work(later, stand_in)
    assert states(later) == [TrialState.FAIL, TrialState.COMPLETE]
    again = runs(tracker, "left")[0]
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")


TRANSLATORS = StudyConfig.model_validate(
    {
        "name": "cut",
        "trial": {
            "translator": {"family": "neuron_transformer", "neuron_transformer": {"width": 16, "depth": 1, "heads": 2}},
            "training": {"epochs": 4, "steps_per_epoch": 3, "batch_size": 4, "ema": 0.5},
            "augmentation": {"hidden_permutation": True},
        },
        "space": {
            "training.learning_rate": {"float": [1e-4, 1e-2], "log": True},
            "augmentation.noise.std": {"float": [0.0, 0.05]},
            "translator.neuron_transformer.dropout": {"float": [0.0, 0.2]},
        },
        "search": {"trials": 2, "pruner": {"name": "none"}},
    }
)


def search_translators(name: str, root: Path, kind: Callable[..., Any] = TranslatorTraining) -> None:
    """Search with real translators under `root` to the end; what an earlier search there left goes on."""
    dataset = load_dataset(DatasetConfig(name="mnist5k", train_images=128, selection_images=64))
    zoo = untrained_zoo(PaperArchitecture("basic_to_simple"), MemberCounts(train=8, selection=2, test=1))
    config = TRANSLATORS.model_copy(update={"name": name})
    driver = start_driver(config, open_storage(f"sqlite:///{root}/optuna.db"), open_tracker(root), root)
    work(driver, lambda trial: kind(trial, zoo, dataset))
    assert driver.error is None


def trials_of(root: Path, name: str) -> list[FrozenTrial]:
    storage = open_storage(f"sqlite:///{root}/optuna.db")
    return storage.get_all_trials(storage.get_study_id_from_name(name))


@pytest.mark.slow
def test_a_translator_killed_in_mid_trial_has_the_numbers_of_one_never_interrupted(
    root: Path, tracker: Tracker
) -> None:
    command = [sys.executable, "-m", "tests.search.worker", str(root)]
    killed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=300, check=False)
    assert killed.returncode == -9, killed.stderr
    cut_short = [(trial.state, len(trial.intermediate_values)) for trial in trials_of(root, "cut")]
    assert cut_short == [(TrialState.RUNNING, 2)]
    search_translators("cut", root)
    search_translators("whole", root)
    cut, whole = runs(tracker, "cut"), runs(tracker, "whole")
    assert cut.keys() == {0, 2}  # 1 took the place of 0
    for one, other in zip((cut[0], cut[2]), (whole[0], whole[1]), strict=True):
        assert (one.info.status, other.info.status) == ("FINISHED", "FINISHED")
        assert one.data.params == other.data.params
        for key in ("loss", "accuracy_mean", "accuracy_min", "accuracy_max", "parameters"):
            histories = [
                [(point.step, point.value) for point in tracker.client.get_metric_history(run.info.run_id, key)]
                for run in (one, other)
            ]
            assert histories[0] == histories[1]
            assert [step for step, _ in histories[0]] == [1, 2, 3, 4]
    assert {trial.state for trial in lineages(trials_of(root, "cut")).values()} == {TrialState.COMPLETE}


def test_a_driver_that_dies_after_the_last_report_does_not_prune(tracker: Tracker, tmp_path: Path) -> None:
    storage = InMemoryStorage()
    config = study_config("last", trials=2, pruner={"name": "median", "options": {"n_startup_trials": 1}})
    driver = start_driver(config, storage, tracker, tmp_path)
    for accuracy in (0.9, 0.2):  # the second one is worse where pruning is no use any more
        begin(driver, stand_in)
        assert driver.on_report("t", Report(1, {"accuracy_mean": 0.1}, 1.0))
        last = Report(2, {"accuracy_mean": accuracy}, 2.0, finished=True)
        assert not driver.on_report("t", last)
        if accuracy == 0.9:
            driver.on_trial_end("t", lost=False)
    later = start_driver(config, storage, tracker, tmp_path)  # the driver died before the second one's end
    given = later.next_trial("t")
    assert given is not None
    assert given["reported"] == 2
    assert not later.on_report("t", last)
    later.on_trial_end("t", lost=False)
    assert states(later) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
