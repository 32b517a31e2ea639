"""Points to try first: from another study, or from a translator that was found before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import TrialState

from kt_ray.config import DistillConfig, Frozen, TrialConfig, validate
from kt_ray.distillation.distill import load_student
from kt_ray.errors import StudyError
from kt_ray.search.retries import lineages
from kt_ray.search.space import Distributions, contains, value_at
from kt_ray.search.summary import load_study
from kt_ray.studies.study_file import Config
from kt_ray.translation.checkpoint import load_translator

BEST = 5


def points_of_study(url: str, name: str, space: Distributions, best: int = BEST) -> list[dict[str, Any]]:
    """The `best` complete trials of the study `name`, as far as they lie in `space`; best first.

    Raises StudyError if the study is missing, or none of its parameters lies in `space`.
    """
    study = load_study(url, name)
    sign = 1 if study.directions[0] is StudyDirection.MAXIMIZE else -1
    complete = [trial for trial in lineages(study.trials).values() if trial.state is TrialState.COMPLETE]
    points: list[dict[str, Any]] = []
    for trial in sorted(complete, key=lambda trial: -sign * trial.values[0]):
        point = inside(trial.params, space)
        if point and point not in points:
            points.append(point)
    if not points:
        raise StudyError(f"no complete trial of {name} has a parameter that lies in the space of this study")
    return points[:best]


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
    """The values that `trial` has on the paths of `space`."""
    return inside({path: value_at(trial, path) for path in space}, space)


def inside(values: Mapping[str, Any], space: Distributions) -> dict[str, Any]:
    """The entries of `values` that `space` can draw."""
    return {path: value for path, value in values.items() if path in space and contains(space[path], value)}
