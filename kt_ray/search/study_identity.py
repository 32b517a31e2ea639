"""The inputs of a study's trials, kept in the study, so that a change is noticed before it spoils comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

import kt_ray
from kt_ray.config import DistillConfig, StudyConfig
from kt_ray.config.code import hashes
from kt_ray.errors import StudyError
from kt_ray.search.code_fingerprint import differences, fingerprint, function_hashes
from kt_ray.search.space import to_distribution
from kt_ray.search.task import Task

ATTRIBUTE = "searched_with"  # user attribute of the study
FUNCTIONS = "functions"  # in it: the hash of each function that decides numbers
FILES = "files"  # in it: the SHA-256 of each file of code that the study brings along, by its name


def study_identity(config: StudyConfig | DistillConfig, task: Task) -> dict[str, Any]:
    """Return everything besides the sampled values that decides a trial's numbers."""
    base = {
        path: value for path, value in flat(config.trial.model_dump(mode="json")).items() if path not in config.space
    }
    shared = {task.shares: task.fingerprint, "dataset": task.dataset_fingerprint}
    root = Path(kt_ray.__file__).parent
    functions = function_hashes(root, type(task).__module__.removeprefix(f"{root.name}."), task.code)
    own = {FILES: hashes(config.code)} if config.code else {}
    return {"code": fingerprint(functions), FUNCTIONS: functions, **own, **shared, "trial": base}


def changes(before: dict[str, Any], now: dict[str, Any], defaults: Mapping[str, Any] | None = None) -> list[str]:
    """Return what differs, one line each; the code first.

    A path of the trial that `before` has no value for, as a release before it was there, is no change if its value now
    is its default in `defaults`.
    """
    found = []
    if before.get("code") != now.get("code"):
        if isinstance(before.get(FUNCTIONS), dict):
            found.append(f"code: {differences(before[FUNCTIONS], now.get(FUNCTIONS, {})) or 'another version'}")
        else:
            found.append("code: an earlier release recorded no functions, so whether they changed cannot be told")
    found += [
        f"{name}: {before.get(name)} before, {now[name]} now"
        for name in now
        if name not in ("trial", "code", FUNCTIONS, FILES) and before.get(name) != now[name]
    ]
    found += file_changes(before.get(FILES, {}), now.get(FILES, {}))
    old, new = before.get("trial", {}), now["trial"]
    for path in sorted(old.keys() | new.keys()):
        if path not in old and defaults and path in defaults and defaults[path] == new[path]:
            continue
        if old.get(path) != new.get(path):
            found.append(f"trial.{path}: {old.get(path)!r} before, {new.get(path)!r} now")
    return found


def file_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return which files of code differ, one line each, with both hashes."""
    return [
        f"{name}: SHA-256 {before.get(name, 'none')} before, {now.get(name, 'none')} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def check_code(config: StudyConfig | DistillConfig, study: optuna.Study) -> None:
    """Raise StudyError if trials of `study` ran other code of the person's than `config` brings along."""
    before = study.user_attrs.get(ATTRIBUTE)
    found = file_changes(before.get(FILES, {}), hashes(config.code)) if before else []
    if found:
        raise _searched_otherwise(study, found)


def check_unchanged(
    study: optuna.Study, now: dict[str, Any], *, accept: bool, defaults: Mapping[str, Any] | None = None
) -> list[str]:
    """Compare with what the study was searched with, and remember the present. Returns what has changed.

    `defaults` are those of the trial, as dotted paths.

    Changed code is only reported. Raises StudyError if zoo, dataset or base trial have changed, unless `accept`:
    their trials are not comparable.
    """
    before = study.user_attrs.get(ATTRIBUTE)
    found = changes(before, now, defaults) if before else []
    grave = [line for line in found if not line.startswith("code:")]
    if grave and not accept:
        raise _searched_otherwise(study, grave)
    if before != now:
        study.set_user_attr(ATTRIBUTE, now)
    return found


def _searched_otherwise(study: optuna.Study, changed: Sequence[str]) -> StudyError:
    return StudyError(
        f"study {study.study_name} was searched with something else ({'; '.join(changed)}); give the study another "
        "`name`, or accept that its trials are not comparable with --accept-changes"
    )


def check_space(config: StudyConfig | DistillConfig, trials: Iterable[FrozenTrial]) -> None:
    """Raises StudyError if a path that was searched before now has choices or a kind that Optuna cannot mix."""
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
