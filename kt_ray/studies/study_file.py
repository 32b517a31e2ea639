"""Study files of both kinds: each is read in one place, with its space, sampler and pruner checked together."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from kt_ray._io.checksum import json_with_checksum
from kt_ray._io.files import write_whole
from kt_ray.config import (
    DistillConfig,
    DistillTrialConfig,
    Distribution,
    Source,
    StudyConfig,
    read_source,
    validate,
    validate_source,
)
from kt_ray.config.code import CodeFile, read_code
from kt_ray.config.network import NetworkChoice
from kt_ray.config.reference import MODELS
from kt_ray.config.study import SearchConfig
from kt_ray.errors import ConfigError, StudyError
from kt_ray.registry import register
from kt_ray.search.samplers import build_pruner, build_sampler
from kt_ray.search.space import grid_problems
from kt_ray.search.space_problems import point_problems, problems, step_problems
from kt_ray.studies.permission import Permission
from kt_ray.studies.workspace import Workspace, read_json

Config: TypeAlias = StudyConfig | DistillConfig
Kind = Literal["translation", "distillation"]
FILE = "study.json"
OLD_DISTILLATION = "distill.json"  # where releases before there was one runner kept that of a distillation
Made = TypeVar("Made")
COMMANDS = {"translation": "kt-ray run", "distillation": "kt-ray distill"}


def read_study_file(
    path: Path, overrides: Sequence[str] = (), kind: Kind | None = None, permission: Permission | None = None
) -> Config:
    """Read the study file at `path`, whose kind must be `kind` if that is given.

    Its code runs first, as it may register what the file names. Without `permission`, only code that was allowed before
    in the usual workspace does. Raises ConfigError with every fault of the code, else of values, space, sampler and
    pruner, each with its line.
    """
    return read_with_source(path, overrides, kind, permission)[0]


def read_study(path: Path, overrides: Sequence[str] = (), permission: Permission | None = None) -> StudyConfig:
    """Read the study file at `path`, which must be of a translation. Raises as `read_study_file` does."""
    config = read_study_file(path, overrides, "translation", permission)
    assert isinstance(config, StudyConfig)
    return config


def read_with_source(
    path: Path, overrides: Sequence[str] = (), kind: Kind | None = None, permission: Permission | None = None
) -> tuple[Config, Source]:
    """Read the study file at `path`; return the text it was read from too, with the text of its code in it.

    Raises as `read_study_file` does.
    """
    permission = permission or Permission.at()
    source = read_source(path, overrides, permission.includes)
    model = _model(source.content, kind, str(path))
    if "code" in source.content:
        try:
            files = read_code(source.content["code"], path.parent)
        except ConfigError as error:
            raise source.error(error.problems) from None
        permission.run(files)
        source.embed("code", _plain(files))
    try:
        config = validate_source(model, source)
    except ConfigError as error:
        raise ConfigError(error.problems + source.error(_space_problems(model, source.content)).problems) from None
    faults = search_problems(config)
    if faults:
        raise source.error(faults)
    return config, source


def study_config(
    content: Mapping[str, Any],
    where: str = "study",
    kind: Kind | None = None,
    permission: Permission | None = None,
) -> Config:
    """Return the mapping `content` as the study file that it is, whose code is in the working directory.

    Raises as `read_study_file` does.
    """
    if "code" in content:
        files = read_code(content["code"], Path())
        (permission or Permission.at()).run(files)
        content = {**content, "code": _plain(files)}
    config = validate(_model(content, kind, where), content, where)
    faults = search_problems(config)
    if faults:
        raise ConfigError(faults, where)
    return config


def store_config(config: Config, workspace: Workspace) -> None:
    """Keep the study file as resolved in the study's directory, for `resume`."""
    directory = workspace.study_directory(config.name)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / FILE, json_with_checksum(config.model_dump(mode="json")))


def stored_config(study: str, workspace: Workspace) -> Config:
    """Return the study file, as resolved, that the workspace's study `study` was last run with. Runs no code of it.

    Raises StudyError if the workspace has no such study, or a damaged file of it.
    """
    return _stored(study, workspace, lambda content: _model(content, None, study)(**content))


def stored_code(study: str, workspace: Workspace) -> tuple[CodeFile, ...]:
    """Return the code that the workspace's study `study` was last run with. Raises as `stored_config` does."""
    return _stored(study, workspace, lambda content: read_code(content.get("code", []), Path()))


def _stored(study: str, workspace: Workspace, make: Callable[[Any], Made]) -> Made:
    directory = workspace.study_directory(study)
    for name in (FILE, OLD_DISTILLATION):
        path = directory / name
        if path.is_file():
            return read_json(path, make)
    folder = workspace.root / "studies"
    known = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    raise StudyError(f"no study {study!r} in {workspace.root}; there are: {', '.join(known) or 'none'}")


def _plain(files: Sequence[CodeFile]) -> list[dict[str, Any]]:
    return [file.model_dump(mode="json") for file in files]


def _model(content: Mapping[str, Any], kind: Kind | None, where: str) -> type[Config]:
    """Return the model of the kind that `content` names, or that its keys imply."""
    found = content.get("kind", "distillation" if "student" in content else "translation")
    if not isinstance(found, str) or found not in MODELS:
        raise ConfigError(f"kind: expected {' or '.join(MODELS)}, got {str(found)[:40]!r}", where)
    if kind is not None and found != kind:
        raise ConfigError(f"a {found} study, not a {kind} study; `{COMMANDS[found]}` runs it", where)
    return MODELS[found]


def search_problems(config: Config) -> list[str]:
    """Return what is wrong with the space, the first points, sampler and pruner of values that are valid alone."""
    search = config.search
    faults = problems(config.space, config.trial) or step_problems(config.space)
    faults += point_problems(search.points, config.space)
    if search.sampler.name == "grid":
        faults += grid_problems(config.space)
    for build in (lambda: build_sampler(search.sampler, seed=0), lambda: build_pruner(search.pruner)):
        try:
            build()
        except ConfigError as error:
            faults += error.problems
    faults += metric_problems(search, config.metrics)
    return faults + (registry_problems(config) if isinstance(config, StudyConfig) else [])


def registry_problems(config: StudyConfig) -> list[str]:
    """Return what nobody has registered: a network or pair by its name, or an option of the pair."""
    faults, network = [], config.zoo.network
    try:
        register.pair.get(config.pair.name).parse(config.pair.options)
    except ConfigError as error:
        faults += [f"pair: {problem}" for problem in error.problems]
    try:
        if isinstance(network, NetworkChoice):
            register.network.get(network.name)
    except ConfigError as error:
        faults += [f"network: {problem}" for problem in error.problems]
    return faults


def metric_problems(search: SearchConfig, reported: Sequence[str]) -> list[str]:
    """Return objectives and constraints over metrics that are not `reported` by every trial, with the nearest one."""
    asked = {f"search.objectives.{number}.metric": one.metric for number, one in enumerate(search.objectives)}
    asked |= {f"search.constraints.{number}": one.metric for number, one in enumerate(search.constraints)}
    return [
        f"{where}: no trial reports {metric!r}; did you mean {nearest[0]}?"
        if (nearest := difflib.get_close_matches(metric, reported, n=1))
        else f"{where}: no trial reports {metric!r}; expected one of {', '.join(reported)}"
        for where, metric in asked.items()
        if metric not in reported
    ]


def _space_problems(model: type[Config], content: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the space of a file that has other faults; nothing if it cannot be read alone."""
    trial = DistillTrialConfig.model_fields if model is DistillConfig else ("trial",)
    alone = {name: content[name] for name in (*trial, "space") if name in content}
    try:
        config = validate(model, {"name": "alone"} | alone)
    except ConfigError:
        return []
    return problems(config.space, config.trial)


def space_rows(config: Config) -> list[dict[str, Any]]:
    """Return a row for each searched path: what is drawn, from where, under which condition."""
    return [{"path": path, **_described(distribution)} for path, distribution in config.space.items()]


def _described(distribution: Distribution) -> dict[str, Any]:
    if distribution.categorical is not None:
        kind, values = "categorical", ", ".join(str(choice) for choice in distribution.categorical)
    else:
        kind = "float" if distribution.float_range is not None else "int"
        low, high = distribution.float_range or distribution.int_range or (0, 0)
        values = f"{low:g} … {high:g}" + (f" step {distribution.step:g}" if distribution.step else "")
    when = ", ".join(f"{path} = {value}" for path, value in distribution.when.items())
    return {"kind": kind + (" log" if distribution.log else ""), "values": values, "when": when}
