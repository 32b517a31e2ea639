"""A search from what the study lacks to its end: Ray Tune executes, the study decides."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from ray import tune

from kt_ray.config import DistillConfig, StudyConfig, TrialResources
from kt_ray.errors import ConfigError, StudyError
from kt_ray.jobs.connection import fitting
from kt_ray.search.driver import Ledger, Tracking
from kt_ray.search.lease import Lease, driving
from kt_ray.search.progress import SearchProgress
from kt_ray.search.pruning import PruningScheduler
from kt_ray.search.retries import lineage_of
from kt_ray.search.searcher import StudySearcher
from kt_ray.search.space_problems import point_problems, problems
from kt_ray.search.storage import enduring_storage
from kt_ray.search.study import SearchStudy
from kt_ray.search.study_identity import check_space, check_unchanged, flat, searched_with
from kt_ray.search.task import PRODUCT, Task
from kt_ray.search.tensor_transport import pack
from kt_ray.search.trial import TaskTrial

logger = logging.getLogger(__name__)

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


class SearchWorkspace(Protocol):
    """Where a search keeps its study, its trials' checkpoints and its temporary files."""

    @property
    def root(self) -> Path: ...

    @property
    def study_storage(self) -> str: ...

    def checkpoints(self, study: str) -> str: ...


@dataclass(frozen=True)
class SearchResult:
    """How a search ended.

    `stopped` names the signal that ended it, `limit` the budget or grid that kept it from having all its trials.
    `translator` is the file of the champion: a translator or a student; with several objectives or constraints, see
    `kt_ray.search.retries.chosen` for the rule that names the champion.
    """

    name: str
    trials: int
    stopped: str | None
    limit: str | None
    best_trial: int | None
    best_value: float | None
    best_params: dict[str, Any]
    translator: Path | None
    study_run: str
    progress: SearchProgress


def run_search(
    config: StudyConfig | DistillConfig,
    workspace: SearchWorkspace,
    task: Task,
    tracker: Tracking,
    on_progress: Callable[[SearchProgress], None] | None = None,
    *,
    accept_changes: bool = False,
) -> SearchResult:
    """Run the trials that the study of `config` still lacks, on the Ray cluster that is connected.

    SIGINT and SIGTERM end it in order; a second one at once. Raises StudyError where another driver lives, or where
    dataset, base trial or what the trials share are not those of the study's trials (unless `accept_changes`);
    ResourceError where no node can hold a trial; TrackingError.
    """
    faults = problems(config.space, config.trial) + point_problems(config.search.points, config.space)
    if faults:
        raise ConfigError(faults)
    study = SearchStudy(config, enduring_storage(workspace.study_storage))
    with driving(study.optuna) as lease:
        now, defaults = searched_with(config, task), flat(type(config.trial)().model_dump(mode="json"))
        for change in check_unchanged(study.optuna, now, accept=accept_changes, defaults=defaults):
            logger.warning("study %s, changed: %s", config.name, change)
        check_space(config, study.trials())
        resources = config.search.resources
        devices = resources.gpus or resources.cpus
        study.describe(devices)
        study.recover("its driver died")
        study.enqueue(config.search.points)
        tags = {"kt_ray.study_id": study.identity, "kt_ray.zoo_fingerprint": task.fingerprint}
        run = tracker.study_run(config.name, _study_params(config, task), tags)
        ledger = Ledger(
            study,
            tracker,
            run,
            Path(workspace.checkpoints(config.name)),
            total=config.search.trials,
            concurrency=_concurrency(config),
            devices=devices,
            on_progress=on_progress,
        )
        if not ledger.over:
            with _stopping_on_signals(ledger):
                _execute(ledger, lease, config, workspace, task)
        return _result(study, ledger, run)


def _result(study: SearchStudy, ledger: Ledger, run: str) -> SearchResult:
    best = study.best()
    made = next(ledger.directory(lineage_of(best)).glob(PRODUCT), None) if best else None
    return SearchResult(
        name=study.config.name,
        trials=study.config.search.trials,
        stopped=ledger.stopped,
        limit=ledger.limit,
        best_trial=lineage_of(best) if best else None,
        best_value=best.values[0] if best else None,
        best_params=dict(best.params) if best else {},
        translator=made,
        study_run=run,
        progress=ledger.progress(),
    )


def _study_params(config: StudyConfig | DistillConfig, task: Task) -> dict[str, Any]:
    search = config.search
    return {
        "dataset": config.dataset.name,
        **task.params(),
        "sampler": search.sampler.name,
        "pruner": search.pruner.name,
        "seed": search.seed,
        "objectives": ", ".join(f"{objective.direction} {objective.metric}" for objective in search.objectives),
    }


def _demand(resources: TrialResources) -> dict[str, float]:
    return {"CPU": resources.cpus, "GPU": resources.gpus, **resources.resources}


def _concurrency(config: StudyConfig | DistillConfig) -> int:
    """Trials at once: what the cluster bears, or what is asked for. Raises ResourceError where none fits."""
    bears = fitting(_demand(config.search.resources), config.search.resources.label_selector)
    return min(config.search.concurrency or bears, bears)


def _execute(
    ledger: Ledger,
    lease: Lease,
    config: StudyConfig | DistillConfig,
    workspace: SearchWorkspace,
    task: Task,
) -> None:
    """Run Ray Tune until the ledger is over. Raises what the study or MLflow raised on the way."""
    resources = config.search.resources
    demand = {name: amount for name, amount in _demand(resources).items() if amount > 0}
    labels = resources.label_selector
    trainable = tune.with_resources(
        tune.with_parameters(
            TaskTrial,
            task=pack(task),
            device="cuda" if resources.gpus else "cpu",
            threads=max(1, int(resources.cpus)),
        ),
        tune.PlacementGroupFactory([demand], bundle_label_selector=[labels] if labels else None),
    )
    scratch = Path(tempfile.mkdtemp(prefix=".tune-", dir=workspace.root))
    try:
        with _quiet_tune(ledger):
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=StudySearcher(ledger),
                    scheduler=PruningScheduler(ledger),
                    num_samples=-1,  # the searcher says when the study has enough
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name=config.name,
                    storage_path=str(scratch),
                    stop=_Halt(ledger, lease),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                    verbose=0,
                ),
            )
            tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if lease.lost is None:
            ledger.interrupt(ledger.stopped or "the search ended early")
    if ledger.fault is not None:
        raise ledger.fault


class _Halt(tune.Stopper):
    """Stops Ray Tune when the ledger is halted or another driver has taken over. Trials stop by the scheduler."""

    def __init__(self, ledger: Ledger, lease: Lease) -> None:
        self._ledger = ledger
        self._lease = lease

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its stopper, and nobody reads that back."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never: the scheduler decides."""
        return False

    def stop_all(self) -> bool:
        """Whether everything is to end."""
        if self._lease.lost is not None and self._ledger.fault is None:
            self._ledger.fault = StudyError(f"this driver was taken for dead; the study went to {self._lease.lost}")
        return self._ledger.halted


@contextmanager
def _quiet_tune(ledger: Ledger) -> Iterator[None]:
    """Ray Tune's settings and silence for the length of a search."""
    before = {name: os.environ.get(name) for name in TUNE_SETTINGS}
    os.environ.update(TUNE_SETTINGS)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(ledger.concurrency)
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _stopping_on_signals(ledger: Ledger) -> Iterator[None]:
    """SIGINT and SIGTERM stop the search in order, the second one at once. Only the main thread hears signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if ledger.stopped is not None:
            raise KeyboardInterrupt
        ledger.stop(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
