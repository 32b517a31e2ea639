"""Going on with a study: more trials or time, points to try first, and the command that does it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import TrialState

from kt_ray._io.bundled import PREFIX
from kt_ray.config import DistillConfig, Frozen, TrialConfig, validate
from kt_ray.config.study import Choice
from kt_ray.distillation.distill import load_student
from kt_ray.errors import ConfigError, StudyError
from kt_ray.jobs.job import JOB_VARIABLE
from kt_ray.search.retries import lineages
from kt_ray.search.space import Distributions, contains, value_at
from kt_ray.search.summary import load_study
from kt_ray.studies.study_file import Config
from kt_ray.studies.workspace import Workspace
from kt_ray.tracking.registry import load_champion_path
from kt_ray.translation.bundled import TRANSLATORS
from kt_ray.translation.checkpoint import load_translator

BEST = 5  # trials of another study that are tried first


@dataclass(frozen=True)
class Extension:
    """Changes to a study that goes on: `trials` in all or `add` more, `hours` of this run, `device_hours` in all.

    None leaves the value of the study file. `start_from` names studies or champions whose points are tried next.
    Raises ConfigError if both `trials` and `add` are given.
    """

    trials: int | None = None
    add: int | None = None
    hours: float | None = None
    device_hours: float | None = None
    start_from: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        if self.trials is not None and self.add is not None:
            raise ConfigError("--trials and --add exclude each other; give one")

    def extended(self, config: Config, workspace: Workspace) -> Config:
        """Return `config` with these budgets in place of its own and the points of `start_from` before its own.

        Raises as `started_from` does.
        """
        budgets = {"hours": self.hours, "device_hours": self.device_hours}
        given = {name: value for name, value in budgets.items() if value is not None}
        trials = self.trials or config.search.trials + (self.add or 0)
        search = config.search.model_copy(update={"trials": trials, **given})
        return started_from(config.model_copy(update={"search": search}), workspace, self.start_from)


def started_from(config: Config, workspace: Workspace, sources: Sequence[str]) -> Config:
    """Return `config` with what `sources` found as its first points, as far as its space has their parameters.

    A source is a study of the same storage, `models:/NAME@champion`, a model's file, or `pretrained:NAME`. Raises
    StudyError where it has nothing for this space, TrackingError and CheckpointError where a model cannot be read.
    """
    points: list[dict[str, Choice]] = []
    for source in sources:
        if source == config.name:
            raise StudyError(f"the study {source} cannot start from itself; `kt-ray resume {source}` goes on with it")
        if source.startswith(PREFIX):
            points.append(point_of_model(TRANSLATORS.path(source), config))
        elif "/" in source or source.endswith(".safetensors"):
            points.append(point_of_model(load_champion_path(workspace.tracking_uri, source), config))
        else:
            points += points_of_study(workspace.study_storage, source, config.space)
    search = config.search.model_copy(update={"points": (*points, *config.search.points)})
    return config.model_copy(update={"search": search})


def points_of_study(url: str, name: str, space: Distributions) -> list[dict[str, Any]]:
    """Return the best complete trials of the study `name`, as far as they lie in `space`; best first.

    Raises StudyError if the study is missing, or none of its parameters lies in `space`.
    """
    study = load_study(url, name)
    sign = 1 if study.directions[0] is StudyDirection.MAXIMIZE else -1
    complete = [trial for trial in lineages(study.trials).values() if trial.state is TrialState.COMPLETE]
    points: list[dict[str, Any]] = []
    for trial in sorted(complete, key=lambda trial: -sign * trial.values[0]):
        point = _inside(trial.params, space)
        if point and point not in points:
            points.append(point)
    if not points:
        raise StudyError(f"no complete trial of {name} has a parameter that lies in the space of this study")
    return points[:BEST]


def point_of_model(path: Path, config: Config) -> dict[str, Any]:
    """Return the point at which the model at `path` was trained, as far as it lies in the space of `config`.

    Raises StudyError if it says nothing of its trial, or none of its values lies in the space.
    """
    if isinstance(config, DistillConfig):
        trial: Frozen = load_student(path).config
    else:
        content = load_translator(path).extra.get("trial")
        if content is None:
            raise StudyError(f"{path} does not say from which trial it is; only a search's translators start another")
        trial = validate(TrialConfig, content, str(path))
    point = point_of_trial(trial, config.space)
    if not point:
        raise StudyError(f"{path} was trained with no value that lies in the space of this study")
    return point


def point_of_trial(trial: Frozen, space: Distributions) -> dict[str, Any]:
    """Return the values that `trial` has on the paths of `space`."""
    return _inside({path: value_at(trial, path) for path in space}, space)


def _inside(values: Mapping[str, Any], space: Distributions) -> dict[str, Any]:
    """Return the entries of `values` that `space` can draw."""
    return {path: value for path, value in values.items() if path in space and contains(space[path], value)}


def resume_command(config: Config, workspace: Workspace, more: bool = False) -> str:
    """Return what to type to go on with the study, with more trials if `more`.

    In a job of a cluster, it is what to type where the job was submitted, which can add no trials.
    """
    job = os.environ.get(JOB_VARIABLE)
    if job and not more:
        return f"kt-ray jobs resume {shlex.quote(job)}"
    add = " --add 12" if more else ""
    return f"kt-ray resume {config.name}{workspace.option}{add}"
