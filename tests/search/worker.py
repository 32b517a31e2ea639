"""A worker's side of a search without Ray: trials one after another, as a ledger gives them out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from kt_ray.config import StudyConfig, TrialConfig, validate
from kt_ray.search.driver import Ledger, Tracking
from kt_ray.search.study import SearchStudy
from kt_ray.search.worker import Training, TrialSession

Make = Callable[[TrialConfig], Training]


def ledger_of(config: StudyConfig, storage: optuna.storages.BaseStorage, tracker: Tracking, root: Path) -> Ledger:
    """The ledger of a search that begins now; what an earlier one left running is asked again."""
    study = SearchStudy(config, storage)
    study.recover("its driver died")
    run = tracker.study_run(config.name, {}, {"kt_ray.study_id": study.identity})
    search = config.search
    return Ledger(
        study, tracker, run, root / config.name, total=search.trials, concurrency=1, devices=search.resources.cpus
    )


def begin(ledger: Ledger, make: Make) -> TrialSession:
    """The session of the next trial, called "t"."""
    given: dict[str, Any] | None = ledger.start("t")
    assert given is not None, ledger.fault or ledger.limit
    return TrialSession(make(validate(TrialConfig, given["trial"])), Path(given["directory"]), given["reported"])


def work(ledger: Ledger, make: Make) -> None:
    """Every trial that the ledger has, to its end."""
    while not ledger.over:
        session = begin(ledger, make)
        while ledger.hear("t", session.advance()):
            pass
        ledger.end("t", lost=False)


def killed_in_mid_trial(root: str) -> None:
    """Search with translators, as `test_ledger` does, and die by SIGKILL in the third epoch's second step."""
    import os
    import signal

    from torch import Tensor

    from kt_ray.translation.training import TranslatorTraining
    from tests.search import test_ledger

    class Killed(TranslatorTraining):
        def _step(self, rows: Tensor, generator: Any, step: int, steps: int) -> Tensor:
            if step == 2 * self.steps_per_epoch + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._step(rows, generator, step, steps)

    test_ledger.search_translators("cut", Path(root), Killed)


if __name__ == "__main__":
    killed_in_mid_trial(sys.argv[1])
