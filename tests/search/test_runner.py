"""Searches on Ray to the end, cut short, killed and taken up again; read by Optuna's and MLflow's own clients."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
import ray
from optuna.trial import TrialState

from kt_ray import register
from kt_ray.config import StudyConfig
from kt_ray.data import Dataset
from kt_ray.errors import ResourceError, StudyError
from kt_ray.search import driver
from kt_ray.search.budget import SearchProgress
from kt_ray.search.retries import lineages
from kt_ray.search.runner import SearchResult, run_search
from kt_ray.search.storage import open_storage
from kt_ray.studies.workspace import Workspace
from kt_ray.tracking.tracker import Tracker
from kt_ray.translation.task import TranslatorTask
from kt_ray.zoo.members import Zoo
from tests.search.stand_in import StandIn, study_config

REPOSITORY = Path(__file__).parents[2]


class Bench:
    """A workspace, and a search in it."""

    def __init__(self, root: Path, zoo: Zoo, dataset: Dataset) -> None:
        self.workspace = Workspace.open(root)
        self.zoo = zoo
        self.dataset = dataset

    def search(self, config: StudyConfig, on_progress: Any = None, make: Any = StandIn) -> SearchResult:
        tracker = Tracker(self.workspace.tracking_uri, config.project, self.workspace.artifact_root)
        task = TranslatorTask(self.zoo, self.dataset, make)
        return run_search(config, self.workspace, task, tracker, on_progress)

    def trials(self, name: str = "s") -> list[optuna.trial.FrozenTrial]:
        storage = open_storage(self.workspace.study_storage, create=False)
        return optuna.load_study(study_name=name, storage=storage).trials

    def runs(self) -> list[mlflow.entities.Run]:
        client = mlflow.MlflowClient(self.workspace.tracking_uri)
        experiment = client.get_experiment_by_name("kt_ray")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id], "tags.`kt_ray.kind` = 'trial'", max_results=1000)
        return list(found)


@pytest.fixture
def bench(workspace: Path, random_zoo: Zoo, dataset: Dataset) -> Bench:
    return Bench(workspace, random_zoo, dataset)


def outcome(trials: list[optuna.trial.FrozenTrial]) -> list[tuple[Any, ...]]:
    """What a search found, lineage by lineage, whatever happened on the way."""
    return [
        (trial.state, trial.values, trial.params, trial.intermediate_values)
        for _, trial in sorted(lineages(trials).items())
    ]


def check_all_told_once(bench: Bench, lineages_wanted: int) -> None:
    """No trial RUNNING, each lineage ended once, one MLflow run a lineage and none of them running."""
    trials = bench.trials()
    assert not [trial for trial in trials if trial.state in (TrialState.RUNNING, TrialState.WAITING)]
    last = lineages(trials)
    assert len(last) == lineages_wanted
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in last.values())
    runs = bench.runs()
    assert sorted(int(run.data.tags["kt_ray.lineage"]) for run in runs) == sorted(last)
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    for run in runs:
        trial = last[int(run.data.tags["kt_ray.lineage"])]
        assert run.info.status == ("FINISHED" if trial.state is TrialState.COMPLETE else "KILLED")
        client = mlflow.MlflowClient(bench.workspace.tracking_uri)
        history = client.get_metric_history(run.info.run_id, "accuracy_mean")
        assert {point.step: point.value for point in history} == trial.intermediate_values
        assert len(history) == len(trial.intermediate_values)


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, ray_session: None, random_zoo: Zoo, dataset: Dataset
) -> tuple[Bench, SearchResult, list[SearchProgress]]:
    """Twelve trials, one at a time, from a fixed seed, never interrupted."""
    bench = Bench(tmp_path_factory.mktemp("uninterrupted"), random_zoo, dataset)
    told: list[SearchProgress] = []
    return bench, bench.search(study_config(trials=12), told.append), told


class NeedsPrepared(StandIn):
    """A training that cannot begin unless the selection members' activations are given."""

    def __init__(self, config: Any, zoo: Any, dataset: Any, device: str, prepared: Any = None) -> None:
        super().__init__(config, zoo, dataset, device)
        [activations] = prepared.activations
        [(_, _, kept)] = activations
        assert kept.shape[:2] == (len(zoo.where("selection")), len(dataset.selection))


@pytest.mark.usefixtures("ray_session")
def test_workers_are_given_what_depends_on_zoo_and_images_alone(bench: Bench) -> None:
    bench.search(study_config(trials=2), make=NeedsPrepared)
    assert [trial.state for trial in bench.trials()] == [TrialState.COMPLETE] * 2


def test_a_search_runs_to_its_end(uninterrupted: tuple[Bench, SearchResult, list[SearchProgress]]) -> None:
    bench, result, told = uninterrupted
    check_all_told_once(bench, 12)
    states = [trial.state for trial in bench.trials()]
    assert states.count(TrialState.PRUNED) >= 1
    best = max(trial.value for trial in bench.trials() if trial.state is TrialState.COMPLETE)  # type: ignore[type-var]
    assert result.best_value == best
    assert result.stopped is None
    assert (told[-1].done, told[-1].pruned) == (states.count(TrialState.COMPLETE), states.count(TrialState.PRUNED))
    assert (told[-1].running, told[-1].total, told[-1].best_value) == (0, 12, best)
    assert told[-1].device_hours > 0
    made = {path.name.removesuffix("-wal").removesuffix("-shm") for path in bench.workspace.root.iterdir()}
    assert made <= {"optuna.db", "mlflow.db", "studies", "artifacts"}


def test_a_search_that_is_done_does_nothing(uninterrupted: tuple[Bench, SearchResult, list[SearchProgress]]) -> None:
    bench, first, _ = uninterrupted
    before = outcome(bench.trials())
    again = bench.search(study_config(trials=12))
    assert outcome(bench.trials()) == before
    assert (again.best_trial, again.best_value) == (first.best_trial, first.best_value)


def test_a_signal_ends_it_in_order_and_the_same_command_goes_on_to_the_same_end(
    bench: Bench, uninterrupted: tuple[Bench, SearchResult, list[SearchProgress]]
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        heard: list[SearchProgress] = []

        def interrupt(progress: SearchProgress, heard: list[SearchProgress] = heard, number: int = number) -> None:
            heard.append(progress)
            if len(heard) >= 9 and progress.running:
                os.kill(os.getpid(), number)

        result = bench.search(study_config(trials=12), interrupt)
        assert result.stopped == number.name
        states = [trial.state for trial in bench.trials()]
        assert TrialState.RUNNING not in states
        assert states.count(TrialState.WAITING) == 1
    bench.search(study_config(trials=12))
    check_all_told_once(bench, 12)
    assert outcome(bench.trials()) == outcome(uninterrupted[0].trials())


@pytest.mark.slow  # test_study.py's driver dies after each of its writes, in seconds
def test_a_killed_driver_loses_and_repeats_nothing(
    bench: Bench, uninterrupted: tuple[Bench, SearchResult, list[SearchProgress]]
) -> None:
    command = [sys.executable, "-m", "tests.search.driver", str(bench.workspace.root), "12", "0.05"]
    driver = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and driver.poll() is None:
            time.sleep(0.1)
            if _reports(bench) >= 10:
                break
        driver.send_signal(signal.SIGKILL)
    finally:
        driver.kill()
        driver.wait()
    assert [trial.state for trial in bench.trials()].count(TrialState.RUNNING) <= 1
    bench.search(study_config(trials=12, sleep=0.05))
    check_all_told_once(bench, 12)
    assert outcome(bench.trials()) == outcome(uninterrupted[0].trials())


def _reports(bench: Bench) -> int:
    try:
        return sum(len(trial.intermediate_values) for trial in bench.trials())
    except (KeyError, StudyError):
        return 0


def test_failures_are_told_with_their_reason_and_lost_workers_tried_again(
    bench: Bench, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "BACK_OFF", (0.1, 0.1))
    trouble, path = (0.5, 0.25, 0.125), "training.weight_decay"
    content = study_config(trials=1, points=[{path: value} for value in trouble]).model_dump()
    config = StudyConfig.model_validate(content | {"space": {path: {"categorical": trouble}}})
    result = bench.search(config)
    trials = bench.trials()
    reasons = [(trial.params[path], trial.state.name, trial.user_attrs.get("reason")) for trial in trials]
    assert reasons == [
        (0.5, "FAIL", "epoch 2: objective accuracy_mean is NaN"),
        (0.25, "FAIL", "RuntimeError: loss went away"),
        (0.125, "FAIL", "worker lost"),
        (0.125, "COMPLETE", None),
    ]
    assert (result.progress.done, result.progress.failed) == (1, 2)
    assert sorted(run.info.status for run in bench.runs()) == ["FAILED", "FAILED", "FINISHED"]


def test_a_trial_runs_where_its_labels_are_and_is_tried_again_when_out_of_memory(
    bench: Bench, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "BACK_OFF", (0.1, 0.1))

    def config(labels: dict[str, str]) -> StudyConfig:
        content = study_config(trials=1, resources={"label_selector": labels}).model_dump()
        return StudyConfig.model_validate(content | {"space": {"training.weight_decay": {"categorical": [0.0625]}}})

    with pytest.raises(ResourceError, match="kind"):
        bench.search(config({"kind": "another"}))
    result = bench.search(config({"ray.io/node-id": ray.get_runtime_context().get_node_id()}))
    assert result.progress.done == 1
    first, second = bench.trials()
    assert (first.state, first.user_attrs["reason"]) == (TrialState.FAIL, "out of memory: MemoryError")
    assert second.state is TrialState.COMPLETE
    assert [run.info.status for run in bench.runs()] == ["FINISHED"]


@pytest.mark.slow  # test_device.py: such an error ends the worker; above: a lost worker's trial is tried again
def test_a_broken_device_is_no_fault_of_the_trial_which_another_worker_takes(bench: Bench, ray_session: None) -> None:
    content = study_config(trials=1).model_dump() | {"space": {"training.weight_decay": {"categorical": [0.03125]}}}
    assert bench.search(StudyConfig.model_validate(content)).progress.done == 1
    first, second = bench.trials()
    assert (first.state, first.user_attrs["reason"]) == (TrialState.FAIL, "worker lost")
    assert second.state is TrialState.COMPLETE
    assert [run.info.status for run in bench.runs()] == ["FINISHED"]


def test_a_new_study_of_an_old_name_has_runs_and_checkpoints_of_its_own(bench: Bench, ray_session: None) -> None:
    first = bench.search(study_config(trials=1))
    for path in bench.workspace.root.glob("optuna.db*"):
        path.unlink()
    left = Path(bench.workspace.checkpoints("s")) / "0" / "000004" / "history.json"
    left.parent.mkdir(parents=True)
    left.write_text("[]")
    second = bench.search(study_config(trials=1, seed=1))
    client = mlflow.MlflowClient(bench.workspace.tracking_uri)
    ids = {client.get_run(result.study_run).data.tags["kt_ray.study_id"] for result in (first, second)}
    assert len(ids) == 2
    runs = {run.data.tags["mlflow.parentRunId"]: run.data.metrics["accuracy_mean"] for run in bench.runs()}
    assert runs == {result.study_run: result.best_value for result in (first, second)}
    assert bench.search(study_config(trials=1, seed=1)).study_run == second.study_run


def test_a_search_whose_trials_all_fail_ends(bench: Bench, ray_session: None) -> None:
    config = StudyConfig.model_validate(
        study_config(trials=20).model_dump() | {"space": {"training.weight_decay": {"categorical": [0.25]}}}
    )
    with pytest.raises(StudyError, match=r"5 trials in a row failed.*RuntimeError: loss went away"):
        bench.search(config)
    assert {trial.state for trial in bench.trials()} == {TrialState.FAIL}


class OfRegistered(StandIn):
    """A training that asks for what a study's code registered."""

    def run_epoch(self) -> dict[str, float]:
        return super().run_epoch() | {"parameters": register.loss.make("mine")}


def coded(text: str, **search: Any) -> StudyConfig:
    """A study with one file of code that nobody has on disk."""
    content = study_config(**{"trials": 1, **search}).model_dump() | {"code": [{"name": "mine.py", "text": text}]}
    return StudyConfig.model_validate(content)


@pytest.mark.usefixtures("ray_session")
def test_workers_run_the_code_of_a_study_and_other_code_is_another_study(bench: Bench) -> None:
    code = "from kt_ray import register\nregister.loss('mine')(lambda options: 42.0)"
    bench.search(coded(code), make=OfRegistered)
    (trial,) = bench.trials()
    assert trial.user_attrs["metrics"]["parameters"] == 42.0
    assert "mine" not in register.loss.names()  # not in this process

    changed = coded(code.replace("42", "43"), seed=1)
    hashes = [config.code[0].sha256 for config in (coded(code), changed)]
    with pytest.raises(StudyError, match=rf"mine\.py: SHA-256 {hashes[0]} before, {hashes[1]} now"):
        bench.search(changed, make=OfRegistered)
    with pytest.raises(StudyError, match=rf"mine\.py: SHA-256 {hashes[0]} before, none now"):
        bench.search(study_config(trials=1))


@pytest.mark.usefixtures("ray_session")
def test_code_that_fails_in_a_worker_is_told_in_a_line(bench: Bench) -> None:
    with pytest.raises(StudyError, match=r"mine\.py:2: ModuleNotFoundError"):
        bench.search(coded("\nimport a_package_that_this_node_has_not", trials=9))
