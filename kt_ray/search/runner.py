"""A search from start to end: the study decides what is missing, Ray Tune executes it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from kt_ray.config import DistillConfig, SearchConfig, StudyConfig
from kt_ray.errors import ConfigError
from kt_ray.jobs.connection import fitting, handling
from kt_ray.search.budget import SearchProgress
from kt_ray.search.driver import SearchDriver, Tracking
from kt_ray.search.lease import hold_lease
from kt_ray.search.ray_tune import run_trials
from kt_ray.search.retries import lineage_of
from kt_ray.search.space_problems import point_problems, problems
from kt_ray.search.storage import open_retrying_storage
from kt_ray.search.study import SearchStudy
from kt_ray.search.study_identity import check_space, check_unchanged, flat, study_identity
from kt_ray.search.task import RESULT_FILES, Task

logger = logging.getLogger(__name__)


class SearchWorkspace(Protocol):
    """The places of a search's study, its trials' checkpoints and its temporary files."""

    @property
    def root(self) -> Path: ...

    @property
    def study_storage(self) -> str: ...

    def checkpoints(self, study: str) -> str: ...


@dataclass(frozen=True)
class SearchResult:
    """The end of a search.

    `stopped` names the signal that ended it, `limit` the budget or grid that kept it from having all its trials.
    `translator` is the file of the champion: a translator or a student; `kt_ray.search.retries.select_champion` has
    the rule that names the champion of a study with several objectives or constraints.
    """

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
    """Run the trials that are missing from the study of `config`, on the Ray cluster that is connected.

    SIGINT and SIGTERM end it in order; a second one at once. Raises StudyError if another driver is alive, or if
    dataset, code, base trial or what the trials share are not those of the study's trials (unless `accept_changes`);
    ResourceError if no node can hold a trial; TrackingError.
    """
    faults = problems(config.space, config.trial) + point_problems(config.search.points, config.space)
    if faults:
        raise ConfigError(faults)
    study = SearchStudy(config, open_retrying_storage(workspace.study_storage))
    with hold_lease(study.optuna) as lease:
        now, defaults = study_identity(config, task), flat(type(config.trial)().model_dump(mode="json"))
        for change in check_unchanged(study.optuna, now, accept=accept_changes, defaults=defaults):
            logger.warning("study %s, changed: %s", config.name, change)
        check_space(config, study.trials())
        study.describe()
        study.recover("its driver died")
        study.enqueue(config.search.points)
        tags = {"kt_ray.study_id": study.identity, "kt_ray.zoo_fingerprint": task.fingerprint}
        if config.code:
            tags["kt_ray.code"] = ", ".join(f"{file.name} {file.sha256}" for file in config.code)
        run = tracker.study_run(config.name, _study_params(config, task), tags)
        checkpoints = Path(workspace.checkpoints(config.name)).absolute()  # workers have other working directories
        driver = SearchDriver(study, tracker, run, checkpoints, _concurrency(config.search), on_progress)
        if not driver.finished:

            def abandon() -> None:
                driver.interrupt(driver.stopped or "Ray's processes are gone")
                tracker.finish(run, "KILLED", {"kt_ray.state": f"stopped by {driver.stopped}"})

            try:
                with _stopping_on_signals(driver, abandon):
                    run_trials(driver, lease, task, config.search.resources, workspace.root, config.code)
            except BaseException as error:
                if lease.lost is None:  # else the run is another driver's now
                    ended = isinstance(error, KeyboardInterrupt | SystemExit)
                    tracker.finish(run, "KILLED" if ended else "FAILED")
                raise
        return _result(study, driver, run)


def _result(study: SearchStudy, driver: SearchDriver, run: str) -> SearchResult:
    best = study.best()
    file = next(driver.directory(lineage_of(best)).glob(RESULT_FILES), None) if best else None
    return SearchResult(
        stopped=driver.stopped,
        limit=driver.limit,
        best_trial=lineage_of(best) if best else None,
        best_value=best.values[0] if best else None,
        best_params=dict(best.params) if best else {},
        translator=file,
        study_run=run,
        progress=driver.progress(),
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


def _concurrency(search: SearchConfig) -> int:
    """Return how many trials run at once: as many as fit, or as asked for. Raises ResourceError if none fits."""
    fit = fitting(search.resources.demand, search.resources.label_selector)
    return min(search.concurrency or fit, fit)


@contextmanager
def _stopping_on_signals(driver: SearchDriver, abandon: Callable[[], None]) -> Iterator[None]:
    """Let SIGINT and SIGTERM stop the search in order, and a second one at once. Only the main thread gets signals."""

    def handle(number: int, frame: FrameType | None) -> None:
        if driver.stopped is not None:
            raise KeyboardInterrupt
        driver.stop(signal.Signals(number).name)

    with handling(handle, signal.SIGINT, signal.SIGTERM, before_exit=abandon):
        yield
