"""What a study was searched with, kept in the study, so that a change is noticed before it spoils comparisons."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

import kt_ray
from kt_ray.config import DistillConfig, StudyConfig
from kt_ray.errors import StudyError
from kt_ray.search.space import to_distribution
from kt_ray.search.task import Task

ATTRIBUTE = "searched_with"  # user attribute of the study


def study_identity(config: StudyConfig | DistillConfig, task: Task) -> dict[str, Any]:
    """Everything besides the sampled values that a trial's numbers follow from."""
    base = {
        path: value for path, value in flat(config.trial.model_dump(mode="json")).items() if path not in config.space
    }
    shared = {task.shares: task.fingerprint, "dataset": task.dataset_fingerprint}
    return {"code": code_fingerprint(task.code), **shared, "trial": base}


def code_fingerprint(code: Iterable[str]) -> str:
    """SHA-256 over the files and folders `code` of the package, 12 hexadecimal digits."""
    root = Path(kt_ray.__file__).parent
    digest = hashlib.sha256()
    for name in code:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def changes(before: dict[str, Any], now: dict[str, Any], defaults: Mapping[str, Any] | None = None) -> list[str]:
    """What differs, one line each; the code first.

    A path of the trial that `before` has no value for, as a release before it was there, is no change if its value now
    is its default in `defaults`.
    """
    found = [
        f"{name}: {before.get(name)} before, {now[name]} now"
        for name in now
        if name != "trial" and before.get(name) != now[name]
    ]
    old, new = before.get("trial", {}), now["trial"]
    for path in sorted(old.keys() | new.keys()):
        if path not in old and defaults and path in defaults and defaults[path] == new[path]:
            continue
        if old.get(path) != new.get(path):
            found.append(f"trial.{path}: {old.get(path)!r} before, {new.get(path)!r} now")
    return found


def check_unchanged(
    study: optuna.Study, now: dict[str, Any], *, accept: bool, defaults: Mapping[str, Any] | None = None
) -> list[str]:
    """Compare with what the study was searched with, and remember the present. Returns what has changed.

    `defaults` are those of the trial, as dotted paths.

    Changed code is told, no more. Raises StudyError where zoo, dataset or base trial have changed, unless `accept`:
    their trials are not comparable.
    """
    before = study.user_attrs.get(ATTRIBUTE)
    found = changes(before, now, defaults) if before else []
    grave = [line for line in found if not line.startswith("code:")]
    if grave and not accept:
        raise StudyError(
            f"study {study.study_name} was searched with something else ({'; '.join(grave)}); give the study another "
            "`name`, or accept that its trials are not comparable with --accept-changes"
        )
    if before != now:
        study.set_user_attr(ATTRIBUTE, now)
    return found


def check_space(config: StudyConfig | DistillConfig, trials: Iterable[FrozenTrial]) -> None:
    """Raises StudyError where a path that was searched before now has choices or a kind that Optuna cannot mix."""
    for path, distribution in config.space.items():
        present = to_distribution(distribution)
        for trial in trials:
            before = trial.distributions.get(path)
            if before is None:
                continue
            try:
                optuna.distributions.check_distribution_compatibility(before, present)
            except ValueError:
                raise StudyError(
                    f"{path}: the study {config.name} has trials of {_shown(before)}, the study file has "
                    f"{_shown(present)}; bounds may change, a kind or choices may not: give the study another `name`"
                ) from None
            break


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted paths."""
    paths: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            paths |= flat(value, f"{prefix}{name}.")
        else:
            paths[f"{prefix}{name}"] = value
    return paths


def _shown(distribution: optuna.distributions.BaseDistribution) -> str:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return f"the choices {list(distribution.choices)}"
    return type(distribution).__name__.removesuffix("Distribution").lower()
