"""Faults of a search space, found before anything runs. Each begins with its dotted path in the study file."""

from __future__ import annotations

import itertools
import types
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

import optuna
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from kt_ray.config import Distribution, Frozen
from kt_ray.config.study import Choice
from kt_ray.errors import ConfigError
from kt_ray.search.space import (
    Distributions,
    Space,
    apply,
    as_list,
    contains,
    last_value,
    to_optuna,
    value_at,
    values_of,
)
from kt_ray.search.storage import quiet_optuna

PROBES = 200  # random points that `problems` tries on the base configuration


def problems(space: Distributions, base: Frozen) -> list[str]:
    """Everything wrong with `space`, one line each; empty if a search can start."""
    found = []
    for path, distribution in space.items():
        found += _path_problems(path, distribution, base)
        found += _condition_problems(path, distribution, space, base)
    try:
        callable_space = to_optuna(space, base)
    except ConfigError as error:
        found += error.problems
    if found:
        return found
    return _joint_problems(callable_space, base)


def point_problems(points: Sequence[Mapping[str, Any]], space: Distributions) -> list[str]:
    """Return the faults of points to try first: paths that are not searched, values outside the space."""
    found = []
    for number, point in enumerate(points):
        for path, value in point.items():
            where = f"search.points.{number}.{path}"
            if path not in space:
                found.append(f"{where}: it is not searched; the space has {', '.join(space) or 'no path'}")
            elif not contains(space[path], value):
                found.append(f"{where}: {value!r} lies outside the space")
    return found


def step_problems(space: Distributions) -> list[str]:
    """Return the ranges whose steps miss the upper bound: no trial would ever try it."""
    found = []
    for path, distribution in space.items():
        low, high = distribution.float_range or distribution.int_range or (0, 0)
        if distribution.step is not None and (last := last_value(low, high, distribution.step)) != high:
            found.append(f"space.{path}: steps of {distribution.step:g} from {low:g} end at {last:g}, not at {high:g}")
    return found


def _path_problems(path: str, distribution: Distribution, base: Frozen) -> list[str]:
    """Unknown path; bounds, step or choices that the field does not admit."""
    if distribution.int_range is not None and distribution.step is not None and distribution.step % 1:
        return [f"space.{path}: `step` of an int must be whole, got {distribution.step}"]
    field_info = _field(type(base), path)
    if field_info is None:
        return [f"space.{path}: unknown path; {_known_paths(type(base), path)}"]
    annotation: Any = field_info.annotation
    for constraint in field_info.metadata:
        annotation = Annotated[annotation, constraint]
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    found = []
    for value in distribution.categorical or distribution.float_range or distribution.int_range or ():
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            message = error.errors(include_url=False)[0]["msg"]
            found.append(f"space.{path}: {message[:1].lower() + message[1:]}, got {value!r} in the space")
    if distribution.float_range is not None and not found:
        middle = sum(distribution.float_range) / 2 + 1e-6
        try:
            adapter.validate_python(middle, strict=True)
        except ValidationError:
            found.append(f"space.{path}: the field takes no float; use `int` or `categorical`")
    return found


def _condition_problems(path: str, distribution: Distribution, space: Distributions, base: Frozen) -> list[str]:
    """Conditions on unknown paths, and conditions that never hold."""
    found = []
    for parent, wanted in distribution.when.items():
        values = as_list(wanted)
        if parent in space:
            possible = values_of(space[parent])
            if possible is None:
                found.append(
                    f"space.{path}: `when` looks at {parent}, which is continuous; only discrete paths can decide"
                )
            elif not set(map(repr, values)) & set(map(repr, possible)):
                found.append(
                    f"space.{path}: `when` never holds: {parent} is one of {list(possible)}, not {_shown(values)}"
                )
        elif _field(type(base), parent) is None:
            found.append(f"space.{path}: `when` names an unknown path, {parent}; {_known_paths(type(base), parent)}")
        elif value_at(base, parent) not in values:
            found.append(
                f"space.{path}: `when` never holds: {parent} is {value_at(base, parent)!r} in `trial` and is not "
                f"searched; expected {_shown(values)}"
            )
    return found


def _joint_problems(space: Space, base: Frozen) -> list[str]:
    """Return the faults of values that are fine one by one: random points are tried on the base configuration."""
    faults = Counter[str]()
    with quiet_optuna():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(PROBES):
        try:
            apply(base, space(study.ask()))
        except ConfigError as error:
            faults.update(problem.split(", got")[0] for problem in error.problems)
    return [
        f"space: {count} of {PROBES} random points of the space are not valid: {fault}; narrow it or add a `when`"
        for fault, count in faults.items()
    ]


def _field(model: type[BaseModel], path: str) -> FieldInfo | None:
    """The pydantic field at the dotted `path`, looking into optional and alternative models."""
    head, _, rest = path.partition(".")
    info = model.model_fields.get(head)
    if info is None or not rest:
        # A whole section is no value that a space could sample.
        return info if info is not None and not _models(info.annotation) else None
    if get_origin(info.annotation) is dict:  # options of something registered, or registered things by name
        inside = get_args(info.annotation)[1]
        _, _, further = rest.partition(".")
        return _field(inside, further) if further and _models(inside) else FieldInfo(annotation=Any)
    return next((found for child in _models(info.annotation) if (found := _field(child, rest)) is not None), None)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return list(itertools.chain.from_iterable(_models(part) for part in get_args(annotation)))
    return []


def _known_paths(model: type[BaseModel], path: str) -> str:
    """Return the paths that a wrong one could have been: the fields of its deepest section that exists."""
    walked = []
    for part in path.split("."):
        info = model.model_fields.get(part)
        children = _models(info.annotation) if info else []
        if not children:
            break
        model = children[0]
        walked.append(part)
    section = ".".join(walked) or "trial"
    return f"{section} has {', '.join(sorted(model.model_fields))}; `kt-ray spaces explain {section}` describes them"


def _shown(values: list[Choice]) -> str:
    return " or ".join(repr(value) for value in values)
