"""Train one trial epoch by epoch, with a checkpoint after each; resume it; say why it failed. No Ray here."""

from __future__ import annotations

import errno
import json
import logging
import secrets
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kt_ray._io.checksum import BLANK, KEY, checksum_holds, file_digest, with_checksum
from kt_ray._io.text import first_line
from kt_ray.errors import CheckpointError
from kt_ray.jobs.device import is_out_of_memory

logger = logging.getLogger(__name__)

STATE = "training.safetensors"
HISTORY = "history.json"


class Training(Protocol):
    """The training of a trial, such as `TranslatorTraining` and `StudentTraining`."""

    @property
    def finished(self) -> bool: ...

    def run_epoch(self) -> dict[str, float]: ...

    def save(self, path: Path) -> None: ...

    def load(self, path: Path) -> None: ...


@dataclass(frozen=True)
class Report:
    """A worker's report to the driver after each epoch of a trial, and if the trial fails.

    `seconds` is the time spent on the trial so far, over all its tries. `failure` says in one line why the trial
    failed, `traceback` at length; `infrastructure` whether the machine caused it, so that a retry makes sense.
    """

    epoch: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    finished: bool = False
    failure: str | None = None
    infrastructure: bool = False
    traceback: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report of a trained epoch as plain data, for the history beside the checkpoint."""
        return {name: value for name, value in vars(self).items() if name != "traceback"}


class TrialSession:
    """Train one trial in its own directory, where `<epoch>/` holds its last checkpoint and history.

    A damaged checkpoint is removed, and the trial trained anew, to the same numbers. The driver knows the first
    `reported` epochs. Later epochs that the checkpoint already holds are reported again,
    not trained again.
    """

    def __init__(self, training: Training, directory: Path, reported: int = 0) -> None:
        self.training = training
        self._directory = directory
        self._reported = reported
        self._history: list[Report] = []
        last = last_checkpoint(directory)
        if last is None:
            return
        try:
            self._history = _read_history(last)
        except CheckpointError as error:
            logger.warning("%s; its trial is trained from its first epoch", error)
            shutil.rmtree(last, ignore_errors=True)
            return
        self.training.load(last / STATE)

    def advance(self) -> Report:
        """Train one epoch and save it, or repeat an epoch that the driver does not know. Return its report."""
        if self._reported >= len(self._history) and not (self.training.finished and self._history):
            self._train()
        report = self._history[min(self._reported, len(self._history) - 1)]
        self._reported = report.epoch
        return report

    def _train(self) -> None:
        start = time.perf_counter()
        metrics = self.training.run_epoch()
        spent = self._history[-1].seconds if self._history else 0.0
        epoch = len(self._history) + 1
        report = Report(epoch, metrics, spent + time.perf_counter() - start, finished=self.training.finished)
        self._save([*self._history, report])
        self._history.append(report)

    def _save(self, history: list[Report]) -> None:
        """Write `<epoch>/` whole or not at all, then remove earlier ones.

        A worker that Ray has given up may still write there, beside its replacement. Their numbers are the same, so
        the first to write an epoch wins.
        """
        target = self._directory / f"{len(history):06d}"
        unfinished = self._directory / f".{target.name}.{secrets.token_hex(4)}.unfinished"
        unfinished.mkdir(parents=True)
        try:
            self.training.save(unfinished / STATE)
            reports = [report.to_dict() for report in history]
            content = {KEY: BLANK, "state": file_digest(unfinished / STATE), "reports": reports}
            (unfinished / HISTORY).write_bytes(with_checksum(json.dumps(content).encode()))
            unfinished.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        for older in self._directory.glob("[0-9]*"):
            if older.name < target.name:
                shutil.rmtree(older, ignore_errors=True)


def _read_history(checkpoint: Path) -> list[Report]:
    """Return the reports of a trial's epochs. Raises CheckpointError if they or the state are not what was written."""
    try:
        content = (checkpoint / HISTORY).read_bytes()
        if checksum_holds(content) is False:
            raise ValueError(f"{HISTORY} does not have the SHA-256 that it carries")
        found = json.loads(content)
        if isinstance(found, list):  # from before it carried one
            found = {"reports": found}
        elif found["state"] != file_digest(checkpoint / STATE):
            raise ValueError(f"{STATE} does not have the SHA-256 that {HISTORY} says")
        return [Report(**entry) for entry in found["reports"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{checkpoint} is damaged ({first_line(error)})") from None


def last_checkpoint(directory: Path) -> Path | None:
    """Return the newest complete checkpoint of a trial, or None."""
    return max(directory.glob("[0-9]*"), default=None)


def describe_failure(error: Exception) -> tuple[str, bool]:
    """Return why a trial failed, in one line, and whether the machine rather than the trial caused it."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, MemoryError) or is_out_of_memory(error) or "can't allocate memory" in text:
        return f"out of memory: {reason}", True
    if isinstance(error.__cause__, OSError):  # a CheckpointError that words it for people
        error = error.__cause__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full: {reason}", True
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        return f"storage failed: {reason}", True
    return reason, False


def describe_worker_loss(message: str) -> tuple[str, bool]:
    """Return what Ray's message about a lost worker means, in one line, and whether the machine caused it."""
    lowered = message.lower()
    # Ray's message about any lost worker names the OOM killer among common causes: only these say that it was.
    if "outofmemoryerror" in lowered or "running low on memory" in lowered:
        return "out of memory: Ray's memory monitor killed the worker", True
    if "creation task" in lowered:
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        return f"its worker could not start: {lines[-1]}", False
    if "actor's node" in lowered or "node was terminated" in lowered or "node died" in lowered:
        return "node lost", True
    return "worker lost", True
