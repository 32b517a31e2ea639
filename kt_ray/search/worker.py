"""One trial, epoch by epoch: a checkpoint after each, a report, and the way back from the last. No Ray here."""

from __future__ import annotations

import errno
import json
import secrets
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

STATE = "training.safetensors"
HISTORY = "history.json"


class Training(Protocol):
    """What a trial trains; `TranslatorTraining` and `StudentTraining` are such."""

    @property
    def finished(self) -> bool: ...

    def run_epoch(self) -> dict[str, float]: ...

    def save(self, path: Path) -> None: ...

    def load(self, path: Path) -> None: ...


@dataclass(frozen=True)
class Report:
    """What a trial tells the driver after each epoch, and when it fails.

    `seconds` is the time spent on the trial so far, over all its tries. `failure` says in one line why the trial
    died; `infrastructure` whether it was the machine's doing, so that trying again makes sense.
    """

    epoch: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    finished: bool = False
    failure: str | None = None
    infrastructure: bool = False


class TrialSession:
    """A trial being trained under a directory of its own: `<epoch>/` holds its last checkpoint and history.

    `reported` epochs are known to the driver; later ones that a checkpoint already holds are told again, not
    trained again.
    """

    def __init__(self, training: Training, directory: Path, reported: int = 0) -> None:
        self.training = training
        self._directory = directory
        self._reported = reported
        self._history: list[Report] = []
        last = last_checkpoint(directory)
        if last is not None:
            self._history = [Report(**entry) for entry in json.loads((last / HISTORY).read_text())]
            self.training.load(last / STATE)

    def advance(self) -> Report:
        """Train one epoch and save; or tell an epoch that the driver has not heard of. One report either way."""
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
        """Write `<epoch>/` whole or not at all, then drop those before.

        A worker that Ray has given up may still write there, beside the one that took its place. Their numbers are the
        same: whoever comes first has written the epoch.
        """
        target = self._directory / f"{len(history):06d}"
        unfinished = self._directory / f".{target.name}.{secrets.token_hex(4)}.unfinished"
        unfinished.mkdir(parents=True)
        try:
            self.training.save(unfinished / STATE)
            (unfinished / HISTORY).write_text(json.dumps([vars(report) for report in history]))
            unfinished.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        for older in self._directory.glob("[0-9]*"):
            if older.name < target.name:
                shutil.rmtree(older, ignore_errors=True)


def last_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint of a trial, if it has one."""
    return max(directory.glob("[0-9]*"), default=None)


def diagnose(error: Exception) -> tuple[str, bool]:
    """Why a trial died, in one line, and whether the machine is to blame rather than the trial."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return f"out of memory: {reason}", True
    if isinstance(error.__cause__, OSError):  # what writing a checkpoint says, in words for people
        error = error.__cause__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full: {reason}", True
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        return f"storage failed: {reason}", True
    return reason, False
