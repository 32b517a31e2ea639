"""Ray Tune as the executor of a search: a searcher and a scheduler for the driver; `trainable` is for the workers.

Ray Tune places trials on the cluster, supervises their workers and reuses them. What to run, when to stop a trial and
what was found is the study's; Ray Tune keeps no state of its own that anybody reads.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from kt_ray._io.scratch import make_scratch
from kt_ray.config import TrialResources
from kt_ray.config.code import CodeFile
from kt_ray.errors import StudyError
from kt_ray.search.driver import SearchDriver
from kt_ray.search.lease import Lease
from kt_ray.search.task import Task
from kt_ray.search.tensor_transport import tensors_as_arrays
from kt_ray.search.trainable import TaskTrainable

# Ray Tune without loggers, snapshots, output or signal handlers of its own.
TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "2",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class StudySearcher(Searcher):
    """Suggest the trials of an Optuna study. Ray Tune keeps no state of the search: nothing to save or restore."""

    def __init__(self, driver: SearchDriver) -> None:
        super().__init__()
        self._driver = driver

    def suggest(self, trial_id: str) -> Any:
        """Return a trial's configuration, None if there is nothing to start now, FINISHED at the search's end."""
        if self._driver.finished:
            return Searcher.FINISHED
        return self._driver.next_trial(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record that Ray Tune ended the trial; with `error`, its worker died."""
        self._driver.on_trial_end(trial_id, lost=error)

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class StudyScheduler(FIFOScheduler):
    """Run trials first in, first out; pass each report to the driver, which decides whether the trial continues."""

    def __init__(self, driver: SearchDriver) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._driver = driver

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return CONTINUE, or STOP for a trial that is finished, pruned or failed."""
        goes_on = self._driver.on_report(trial.trial_id, result["report"])
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Pass the message about a worker that died to the driver, before Ray Tune drops it."""
        message = Path(trial.error_file).read_text(errors="replace") if trial.error_file else ""
        self._driver.on_worker_error(trial.trial_id, message)


class StudyStopper(tune.Stopper):
    """Stop Ray Tune when the driver is halted or has lost its lease. Single trials are stopped by the scheduler."""

    def __init__(self, driver: SearchDriver, lease: Lease) -> None:
        self._driver = driver
        self._lease = lease

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray Tune pickles its stopper, and no one reads that back."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: the scheduler decides about single trials."""
        return False

    def stop_all(self) -> bool:
        """Return whether the whole search must end."""
        if self._lease.lost is not None and self._driver.error is None:
            self._driver.error = StudyError(f"this driver was taken for dead; the study went to {self._lease.lost}")
        return self._driver.halted


def run_trials(
    driver: SearchDriver,
    lease: Lease,
    task: Task,
    resources: TrialResources,
    scratch: Path,
    code: Sequence[CodeFile] = (),
) -> None:
    """Run Ray Tune until the driver has finished. `scratch` is where Ray Tune may write temporary files.

    Workers run the study's `code` before anything of a trial.

    Raises whatever error of the study or of MLflow ended the search.
    """
    labels = resources.label_selector
    options = {"gpus": resources.gpus, "threads": max(1, int(resources.cpus)), "code": tuple(code)}
    with tensors_as_arrays():
        trainable = tune.with_resources(
            tune.with_parameters(TaskTrainable, task=task.prepared("cuda" if resources.gpus else "cpu"), **options),
            tune.PlacementGroupFactory([resources.demand], bundle_label_selector=[labels] if labels else None),
        )
    directory = make_scratch(".tune-", scratch)
    try:
        with _quiet_tune(driver.concurrency):
            tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=StudySearcher(driver),
                    scheduler=StudyScheduler(driver),
                    num_samples=-1,  # the searcher says when the study has enough
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name="search",
                    storage_path=str(directory),
                    stop=StudyStopper(driver, lease),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                    verbose=0,
                ),
            ).fit()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if lease.lost is None:
            driver.interrupt(driver.stopped or "the search ended early")
    if driver.error is not None:
        raise driver.error


@contextmanager
def _quiet_tune(concurrency: int) -> Iterator[None]:
    """Set Ray Tune's environment variables and silence its loggers during a search."""
    before = {name: os.environ.get(name) for name in TUNE_SETTINGS}
    os.environ.update(TUNE_SETTINGS)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(concurrency)
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
