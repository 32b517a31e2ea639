"""A trial on its own: checkpoints, the way back, and why it died."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path

import pytest
import torch

from kt_ray.config import TrialConfig
from kt_ray.errors import CheckpointError
from kt_ray.networks.state_file import write_state
from kt_ray.search.worker import (
    HISTORY,
    STATE,
    Report,
    TrialSession,
    describe_failure,
    describe_worker_loss,
    last_checkpoint,
)
from tests.search.stand_in import StandIn, study_config

CONFIG: TrialConfig = study_config().trial


def session(directory: Path, reported: int = 0) -> TrialSession:
    return TrialSession(StandIn(CONFIG, None, None, "cpu"), directory, reported)


def numbers(report: Report) -> tuple[int, dict[str, float], bool]:
    return report.epoch, report.metrics, report.finished


def test_it_goes_on_from_its_checkpoint_to_the_same_numbers(tmp_path: Path) -> None:
    whole = session(tmp_path / "whole")
    expected = [numbers(whole.advance()) for _ in range(4)]
    cut = session(tmp_path / "cut")
    first = [numbers(cut.advance()) for _ in range(2)]
    again = session(tmp_path / "cut", reported=2)
    assert again.training.epoch == 2
    assert first + [numbers(again.advance()) for _ in range(2)] == expected
    assert [entry[2] for entry in expected] == [False, False, False, True]


def test_epochs_the_driver_has_not_heard_of_are_told_again_but_not_trained_again(tmp_path: Path) -> None:
    first = session(tmp_path)
    told = [first.advance() for _ in range(3)]
    again = session(tmp_path, reported=1)
    assert again.advance() == told[1]
    assert again.advance() == told[2]
    assert again.training.epoch == 3
    assert again.advance().epoch == 4


def test_a_trial_whose_end_was_not_heard_ends_again(tmp_path: Path) -> None:
    first = session(tmp_path)
    last = [first.advance() for _ in range(4)][-1]
    assert session(tmp_path, reported=4).advance() == last
    assert session(tmp_path, reported=3).advance() == last


def test_a_lost_checkpoint_means_training_again_from_the_start(tmp_path: Path) -> None:
    again = session(tmp_path, reported=2)
    assert [again.advance().epoch for _ in range(4)] == [1, 2, 3, 4]


def test_only_the_last_checkpoint_is_kept_and_half_written_ones_do_not_count(tmp_path: Path) -> None:
    first = session(tmp_path)
    first.advance()
    first.advance()
    (tmp_path / ".000003.unfinished").mkdir()
    last = last_checkpoint(tmp_path)
    assert last is not None
    assert last.name == "000002"
    assert [path.name for path in tmp_path.glob("[0-9]*")] == ["000002"]
    assert len(json.loads((last / HISTORY).read_text())["reports"]) == 2
    assert session(tmp_path, reported=2).advance().epoch == 3


@pytest.mark.parametrize(
    ("error", "reason", "infrastructure"),
    [
        (RuntimeError("loss went away\nmore"), "RuntimeError: loss went away", False),
        (MemoryError(), "out of memory: MemoryError", True),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory: OutOfMemoryError: CUDA out of memory.", True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory: RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried",
            True,
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "disk full: OSError: [Errno 28] No space left on device",
            True,
        ),
    ],
)
def test_deaths_are_named(error: Exception, reason: str, infrastructure: bool) -> None:
    assert describe_failure(error) == (reason, infrastructure)


def test_a_checkpoint_that_cannot_be_written_is_the_machines_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match="cannot be written") as told:
        write_state(tmp_path / "checkpoint.safetensors", {"weight": torch.zeros(1)})
    assert describe_failure(told.value) == (f"disk full: CheckpointError: {told.value}", True)


def two_sessions(directory: Path) -> tuple[TrialSession, TrialSession]:
    """A worker that was cut off after an epoch, and the one in its place; the first goes on unheard."""
    cut_off = session(directory)
    cut_off.advance()
    return cut_off, session(directory, reported=1)


def test_a_checkpoint_that_a_worker_cut_off_has_written_is_as_good(tmp_path: Path) -> None:
    whole = session(tmp_path / "whole")
    expected = [numbers(whole.advance()) for _ in range(4)]
    cut_off, again = two_sessions(tmp_path / "shared")
    cut_off.advance()
    assert [numbers(again.advance()) for _ in range(3)] == expected[1:]
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["000004"]


def test_a_worker_cut_off_that_lags_behind_takes_no_newer_checkpoint_away(tmp_path: Path) -> None:
    cut_off, again = two_sessions(tmp_path)
    again.advance()
    again.advance()
    cut_off.advance()
    last = last_checkpoint(tmp_path)
    assert last is not None
    assert last.name == "000003"


def test_two_workers_that_write_an_epoch_at_once_both_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off, again = two_sessions(tmp_path)
    save = again.training.save

    def save_beside_the_other(path: Path) -> None:
        save(path)
        cut_off.advance()

    monkeypatch.setattr(again.training, "save", save_beside_the_other)
    assert again.advance().epoch == 2
    assert [path.name for path in tmp_path.iterdir()] == ["000002"]


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = session(tmp_path)
    first.advance()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(first.training, "save", full)
    with pytest.raises(OSError, match="No space left"):
        first.advance()
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]


@pytest.mark.parametrize(
    ("words", "reason", "infrastructure"),
    [
        (
            "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
            "out of memory",
            True,
        ),
        ("The actor died because its node has died. Its actor's node was terminated", "node lost", True),
        ("The actor died unexpectedly before finishing this task.", "worker lost", True),
        ("The actor died because of an error raised in its creation task\nImportError: no", "its worker could", False),
    ],
)
def test_lost_workers_are_named(words: str, reason: str, infrastructure: bool) -> None:
    said, machine = describe_worker_loss(words)
    assert said.startswith(reason)
    assert machine is infrastructure


@pytest.mark.parametrize("name", [HISTORY, STATE])
@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_checkpoint_is_removed_and_the_trial_trained_anew(name: str, seed: int, tmp_path: Path) -> None:
    first = session(tmp_path)
    expected = [numbers(first.advance()) for _ in range(3)]
    last = last_checkpoint(tmp_path)
    assert last is not None
    content = bytearray((last / name).read_bytes())
    content[random.Random(seed).randrange(len(content))] ^= 1
    (last / name).write_bytes(content)
    again = session(tmp_path)
    assert [numbers(again.advance()) for _ in range(3)] == expected


def test_a_history_without_a_checksum_is_read(tmp_path: Path) -> None:
    first = session(tmp_path)
    told = first.advance()
    last = last_checkpoint(tmp_path)
    assert last is not None
    (last / HISTORY).write_text(json.dumps(json.loads((last / HISTORY).read_text())["reports"]))
    assert session(tmp_path).advance() == told
