"""A worker's side of a search without Ray: trials one after another, as a driver gives them out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from kt_ray.config import StudyConfig, TrialConfig, validate
from kt_ray.search.driver import SearchDriver, Tracking
from kt_ray.search.study import SearchStudy
from kt_ray.search.worker import Training, TrialSession

Make = Callable[[TrialConfig], Training]


def start_driver(
    config: StudyConfig, storage: optuna.storages.BaseStorage, tracker: Tracking, root: Path
) -> SearchDriver:
    """The driver of a search that begins now; what an earlier one left running is asked again."""
    study = SearchStudy(config, storage)
    study.recover("its driver died")
    run = tracker.study_run(config.name, {}, {"kt_ray.study_id": study.identity})
    return SearchDriver(study, tracker, run, root / config.name, concurrency=1)


def begin(driver: SearchDriver, make: Make) -> TrialSession:
    """The session of the next trial, called "t"."""
    given: dict[str, Any] | None = driver.next_trial("t")
    assert given is not None, driver.error or driver.limit
    return TrialSession(make(validate(TrialConfig, given["trial"])), Path(given["directory"]), given["reported"])


def work(driver: SearchDriver, make: Make) -> None:
    """Every trial that the driver has, to its end."""
    while not driver.finished:
        session = begin(driver, make)
        while driver.on_report("t", session.advance()):
            pass
        driver.on_trial_end("t", lost=False)


def killed_in_mid_trial(root: str) -> None:
    """Search with translators, as `test_driver` does, and die by SIGKILL in the third epoch's second step."""
    import os
    import signal

    from torch import Tensor

    from kt_ray.translation.training import TranslatorTraining
    from tests.search import test_driver

    class Killed(TranslatorTraining):
        def _step(self, rows: Tensor, generator: Any, step: int, steps: int) -> Tensor:
            if step == 2 * self.steps_per_epoch + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._step(rows, generator, step, steps)

    test_driver.search_translators("cut", Path(root), Killed)


if __name__ == "__main__":
    killed_in_mid_trial(sys.argv[1])
