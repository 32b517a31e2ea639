"""The search space: what is wrong with it, how large it is, and as a function that Optuna runs."""

from __future__ import annotations

import itertools
import math
import random
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from kt_ray.config import Distribution, Frozen, set_path
from kt_ray.config.base import explain
from kt_ray.config.study import Choice
from kt_ray.errors import ConfigError

if TYPE_CHECKING:
    import optuna

Distributions = Mapping[str, Distribution]
Base = TypeVar("Base", bound=Frozen)  # what one trial is configured by: TrialConfig, DistillTrialConfig
PROBES = 200  # random points that `problems` tries on the base configuration


class Suggests(Protocol):
    """The part of an `optuna.trial.Trial` that a space asks for values."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Space:
    """A define-by-run function for Optuna: called with a trial, gives the value of every path that is active.

    `base` holds what the base configuration says of the paths that no distribution covers. Picklable.
    """

    distributions: dict[str, Distribution]
    base: dict[str, Choice] = field(default_factory=dict)

    def __call__(self, trial: Suggests) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for path, distribution in self.distributions.items():
            if self.active(path, values):
                values[path] = _suggest(trial, path, distribution)
        return values

    def active(self, path: str, values: Mapping[str, Any]) -> bool:
        """Whether the conditions of `path` hold, given the values of the paths before it."""
        for parent, wanted in self.distributions[path].when.items():
            known = values if parent in self.distributions else self.base
            if parent not in known or known[parent] not in _as_list(wanted):
                return False
        return True

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point of a space without continuous paths, in order. Raises ConfigError naming a continuous one."""
        endless = [path for path, distribution in self.distributions.items() if _values(distribution) is None]
        if endless:
            raise ConfigError(
                f"{endless[0]}: a grid needs a categorical, an int or a float with a `step` on every path"
            )
        yield from self._extend({}, list(self.distributions))

    def _extend(self, values: dict[str, Any], paths: list[str]) -> Iterator[dict[str, Any]]:
        if not paths:
            yield dict(values)
            return
        path, *rest = paths
        if not self.active(path, values):
            yield from self._extend(values, rest)
            return
        for value in _values(self.distributions[path]) or []:
            yield from self._extend({**values, path: value}, rest)


class _Probe:
    """Stands in for an Optuna trial: uniform values from a seeded generator."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        if step is not None:
            return low + step * self._random.randint(0, int((high - low) / step + 1e-9))
        value = (
            math.exp(self._random.uniform(math.log(low), math.log(high))) if log else self._random.uniform(low, high)
        )
        return min(max(value, low), high)

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        return low + step * self._random.randint(0, (high - low) // step)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._random.choice(choices)


def to_optuna(space: Distributions, base: Frozen | None = None) -> Space:
    """`space` as a picklable define-by-run function; conditions on paths that are not searched look at `base`.

    Raises ConfigError where conditions go in a circle.
    """
    parents = {parent for distribution in space.values() for parent in distribution.when if parent not in space}
    known = {parent: _lookup(base, parent) for parent in parents} if base else {}
    return Space({path: space[path] for path in _ordered(space)}, known)


def to_distribution(distribution: Distribution) -> optuna.distributions.BaseDistribution:
    """`distribution` as Optuna's own."""
    from optuna import distributions

    if distribution.categorical is not None:
        return distributions.CategoricalDistribution(distribution.categorical)
    if distribution.int_range is not None:
        whole = int(distribution.step or 1)
        return distributions.IntDistribution(*distribution.int_range, log=distribution.log, step=whole)
    assert distribution.float_range is not None
    return distributions.FloatDistribution(*distribution.float_range, log=distribution.log, step=distribution.step)


def apply(base: Base, values: Mapping[str, Any]) -> Base:
    """`base` with dotted `values` set, validated again. Raises ConfigError with all faults."""
    content = base.model_dump()
    for path, value in values.items():
        set_path(content, path, value)
    try:
        return type(base).model_validate(content)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def size(space: Distributions, base: Frozen | None = None) -> str:
    """How large the space is, in words: its points, or how many of its paths are continuous."""
    if not space:
        return "empty: every trial is the base trial"
    points = count(space, base)
    if math.isfinite(points):
        return f"{points:,.0f} point{'' if points == 1 else 's'} over {len(space)} paths"
    continuous = sum(_values(distribution) is None for distribution in space.values())
    return f"endless: {continuous} of {len(space)} paths continuous"


def count(space: Distributions, base: Frozen | None = None) -> float:
    """How many points the space has; infinite where a path that can be active is continuous."""
    ordered = to_optuna(space, base)
    deciding = {parent for distribution in space.values() for parent in distribution.when}
    leaves = [path for path in ordered.distributions if path not in deciding]
    branches = Space({path: item for path, item in ordered.distributions.items() if path in deciding}, ordered.base)
    if any(_values(item) is None for item in branches.distributions.values()):
        return math.inf
    total = 0.0
    for values in branches.points():
        active = [ordered.distributions[path] for path in leaves if ordered.active(path, values)]
        total += math.prod(cardinality(item) for item in active)
    return total


def cardinality(distribution: Distribution) -> float:
    """How many values a distribution has; infinite for a continuous one."""
    values = _values(distribution)
    return math.inf if values is None else len(values)


def problems(space: Distributions, base: Frozen) -> list[str]:
    """Everything wrong with `space`, one line each; empty where a search can start."""
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
    """What is wrong with points to try first: paths that are not searched, values outside the space."""
    found = []
    for point in points:
        for path, value in point.items():
            if path not in space:
                found.append(f"search.points: {path} is not searched; the space has {', '.join(space) or 'no path'}")
            elif not contains(space[path], value):
                found.append(f"search.points: {path}={value!r} lies outside the space")
    return found


def contains(distribution: Distribution, value: Any) -> bool:
    """Whether `value` can be drawn from `distribution`."""
    if distribution.categorical is not None:
        return any(value == choice and type(value) is type(choice) for choice in distribution.categorical)
    low, high = distribution.float_range or distribution.int_range or (0, 0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        return False
    if distribution.int_range is not None and value != int(value):
        return False
    step = distribution.step or (1 if distribution.int_range is not None else None)
    return step is None or abs((value - low) / step - round((value - low) / step)) < 1e-9


def _path_problems(path: str, distribution: Distribution, base: Frozen) -> list[str]:
    """Unknown path; bounds, step or choices that the field does not admit."""
    if distribution.int_range is not None and distribution.step is not None and distribution.step % 1:
        return [f"{path}: `step` of an int must be whole, got {distribution.step}"]
    field_info = _field(type(base), path)
    if field_info is None:
        return [f"{path}: unknown path; {_known_paths(type(base), path)}"]
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
            found.append(f"{path}: {message[:1].lower() + message[1:]}, got {value!r} in the space")
    if distribution.float_range is not None and not found:
        middle = sum(distribution.float_range) / 2 + 1e-6
        try:
            adapter.validate_python(middle, strict=True)
        except ValidationError:
            found.append(f"{path}: the field takes no float; use `int` or `categorical`")
    return found


def _condition_problems(path: str, distribution: Distribution, space: Distributions, base: Frozen) -> list[str]:
    """Conditions on unknown paths, and conditions that never hold."""
    found = []
    for parent, wanted in distribution.when.items():
        values = _as_list(wanted)
        if parent in space:
            possible = _values(space[parent])
            if possible is None:
                found.append(f"{path}: `when` looks at {parent}, which is continuous; only discrete paths can decide")
            elif not set(map(repr, values)) & set(map(repr, possible)):
                found.append(f"{path}: `when` never holds: {parent} is one of {list(possible)}, not {_shown(values)}")
        elif _field(type(base), parent) is None:
            found.append(f"{path}: `when` names an unknown path, {parent}; {_known_paths(type(base), parent)}")
        elif _lookup(base, parent) not in values:
            found.append(
                f"{path}: `when` never holds: {parent} is {_lookup(base, parent)!r} in `trial` and is not searched; "
                f"expected {_shown(values)}"
            )
    return found


def _joint_problems(space: Space, base: Frozen) -> list[str]:
    """Faults of values that are fine one by one: tries random points on the base configuration."""
    faults: dict[str, int] = {}
    for seed in range(PROBES):
        try:
            apply(base, space(_Probe(seed)))
        except ConfigError as error:
            for problem in error.problems:
                faults[problem.split(", got")[0]] = faults.get(problem.split(", got")[0], 0) + 1
    return [
        f"{count} of {PROBES} random points of the space are not valid: {fault}; narrow the space or add a `when`"
        for fault, count in faults.items()
    ]


def _ordered(space: Distributions) -> list[str]:
    """The paths of `space`, each after those its conditions look at, otherwise in the order given."""
    ordered: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [path for path in waiting if not any(parent in waiting for parent in space[path].when)]
        if not ready:
            raise ConfigError(f"the conditions of {', '.join(sorted(waiting))} go in a circle")
        ordered += ready
        waiting = [path for path in waiting if path not in ready]
    return ordered


def _suggest(trial: Suggests, path: str, distribution: Distribution) -> Any:
    if distribution.categorical is not None:
        return trial.suggest_categorical(path, distribution.categorical)
    if distribution.int_range is not None:
        low, high = distribution.int_range
        return trial.suggest_int(path, low, high, step=int(distribution.step or 1), log=distribution.log)
    assert distribution.float_range is not None
    bottom, top = distribution.float_range
    return trial.suggest_float(path, bottom, top, step=distribution.step, log=distribution.log)


def _values(distribution: Distribution) -> list[Any] | None:
    """Every value of a discrete distribution, or None for a continuous one."""
    if distribution.categorical is not None:
        return list(distribution.categorical)
    if distribution.int_range is not None:
        low, high = distribution.int_range
        return list(range(low, high + 1, int(distribution.step or 1)))
    assert distribution.float_range is not None
    bottom, top = distribution.float_range
    if bottom == top:
        return [bottom]
    if distribution.step is None:
        return None
    return [bottom + distribution.step * index for index in range(int((top - bottom) / distribution.step + 1e-9) + 1)]


def _field(model: type[BaseModel], path: str) -> FieldInfo | None:
    """The pydantic field at the dotted `path`, looking into optional and alternative models."""
    head, _, rest = path.partition(".")
    info = model.model_fields.get(head)
    if info is None or not rest:
        # A whole section is no value that a space could sample.
        return info if info is not None and not _models(info.annotation) else None
    return next((found for child in _models(info.annotation) if (found := _field(child, rest)) is not None), None)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return list(itertools.chain.from_iterable(_models(part) for part in get_args(annotation)))
    return []


def _known_paths(model: type[BaseModel], path: str) -> str:
    """What a wrong path could have been: the fields of its deepest section that exists."""
    walked = []
    for part in path.split("."):
        info = model.model_fields.get(part)
        children = _models(info.annotation) if info else []
        if not children:
            break
        model = children[0]
        walked.append(part)
    section = ".".join(walked) or "trial"
    return f"{section} has {', '.join(sorted(model.model_fields))}"


def _lookup(base: Frozen, path: str) -> Any:
    value: Any = base
    for part in path.split("."):
        value = getattr(value, part, None)
    return value


def _as_list(value: Choice | list[Choice]) -> list[Choice]:
    return value if isinstance(value, list) else [value]


def _shown(values: list[Choice]) -> str:
    return " or ".join(repr(value) for value in values)
