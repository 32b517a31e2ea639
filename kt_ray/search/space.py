"""The search space: as a function that Optuna runs, and how large it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import ValidationError

from kt_ray.config import Distribution, Frozen, set_path
from kt_ray.config.base import explain
from kt_ray.config.study import Choice
from kt_ray.errors import ConfigError

if TYPE_CHECKING:
    import optuna

LISTED = 100_000  # integers of one path that are counted and gridded; more are as good as continuous
Distributions = Mapping[str, Distribution]
Base = TypeVar("Base", bound=Frozen)  # what one trial is configured by: TrialConfig, DistillTrialConfig


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
        """Return whether the conditions of `path` hold, given the values of the paths before it."""
        for parent, wanted in self.distributions[path].when.items():
            known = values if parent in self.distributions else self.base
            if parent not in known or known[parent] not in as_list(wanted):
                return False
        return True

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point of a space without continuous paths, in order. Raises ConfigError naming a continuous one."""
        endless = grid_problems(self.distributions)
        if endless:
            raise ConfigError(endless)
        yield from self._extend({}, list(self.distributions))

    def _extend(self, values: dict[str, Any], paths: list[str]) -> Iterator[dict[str, Any]]:
        if not paths:
            yield dict(values)
            return
        path, *rest = paths
        if not self.active(path, values):
            yield from self._extend(values, rest)
            return
        for value in values_of(self.distributions[path]) or []:
            yield from self._extend({**values, path: value}, rest)


def to_optuna(space: Distributions, base: Frozen | None = None) -> Space:
    """`space` as a picklable define-by-run function; conditions on paths that are not searched look at `base`.

    Raises ConfigError if conditions go in a circle.
    """
    parents = {parent for distribution in space.values() for parent in distribution.when if parent not in space}
    known = {parent: value_at(base, parent) for parent in parents} if base else {}
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
    """Return the size of the space in words: its points, or how many of its paths are continuous."""
    if not space:
        return "empty: every trial is the base trial"
    points = count(space, base)
    if math.isfinite(points):
        return f"{points:,.0f} point{'' if points == 1 else 's'} over {len(space)} paths"
    continuous = sum(values_of(distribution) is None for distribution in space.values())
    return f"endless: {continuous} of {len(space)} paths continuous"


def count(space: Distributions, base: Frozen | None = None) -> float:
    """Return the number of points of the space; infinite if a path that can be active is continuous."""
    ordered = to_optuna(space, base)
    deciding = {parent for distribution in space.values() for parent in distribution.when}
    leaves = [path for path in ordered.distributions if path not in deciding]
    branches = Space({path: item for path, item in ordered.distributions.items() if path in deciding}, ordered.base)
    if any(values_of(item) is None for item in branches.distributions.values()):
        return math.inf
    total = 0.0
    for values in branches.points():
        active = [ordered.distributions[path] for path in leaves if ordered.active(path, values)]
        total += math.prod(cardinality(item) for item in active)
    return total


def cardinality(distribution: Distribution) -> float:
    """Return the number of values of a distribution; infinite for a continuous one."""
    values = values_of(distribution)
    return math.inf if values is None else len(values)


def grid_problems(space: Distributions) -> list[str]:
    """The paths that no grid can have."""
    return [
        f"space.{path}: a grid needs a categorical, an int or a float with a `step` on every path, of at most "
        f"{LISTED:,} values"
        for path, distribution in space.items()
        if values_of(distribution) is None
    ]


def contains(distribution: Distribution, value: Any) -> bool:
    """Return whether `value` can be drawn from `distribution`."""
    if distribution.categorical is not None:
        return any(value == choice and type(value) is type(choice) for choice in distribution.categorical)
    low, high = distribution.float_range or distribution.int_range or (0, 0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        return False
    if distribution.int_range is not None and value != int(value):
        return False
    step = distribution.step or (1 if distribution.int_range is not None else None)
    return step is None or abs((value - low) / step - round((value - low) / step)) < 1e-9


def _ordered(space: Distributions) -> list[str]:
    """The paths of `space`, each after those its conditions look at, otherwise in the order given."""
    ordered: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [path for path in waiting if not any(parent in waiting for parent in space[path].when)]
        if not ready:
            raise ConfigError(f"space: the conditions of {', '.join(sorted(waiting))} go in a circle")
        ordered += ready
        waiting = [path for path in waiting if path not in ready]
    return ordered


def _suggest(trial: Suggests, path: str, distribution: Distribution) -> Any:
    if distribution.categorical is not None:
        return trial.suggest_categorical(path, distribution.categorical)
    if distribution.int_range is not None:
        low, high = distribution.int_range
        step = int(distribution.step or 1)
        return trial.suggest_int(path, low, low + (high - low) // step * step, step=step, log=distribution.log)
    assert distribution.float_range is not None
    bottom, top = distribution.float_range
    if distribution.step is not None:
        top = last_value(bottom, top, distribution.step)
    return trial.suggest_float(path, bottom, top, step=distribution.step, log=distribution.log)


def last_value(low: float, high: float, step: float) -> float:
    """Return the last value at whole steps from `low` that is not above `high`, in decimals, as Optuna counts."""
    first, last, size = (Decimal(str(value)) for value in (low, high, step))
    return float(first + (last - first) // size * size)


def values_of(distribution: Distribution) -> list[Any] | None:
    """Every value of a discrete distribution, or None for a continuous one and for more than `LISTED` integers."""
    if distribution.categorical is not None:
        return list(distribution.categorical)
    if distribution.int_range is not None:
        low, high = distribution.int_range
        whole = range(low, high + 1, int(distribution.step or 1))
        return list(whole) if len(whole) <= LISTED else None
    assert distribution.float_range is not None
    bottom, top = distribution.float_range
    if bottom == top:
        return [bottom]
    if distribution.step is None:
        return None
    first, last, step = (Decimal(str(value)) for value in (bottom, top, distribution.step))  # as Optuna counts
    return [float(first + step * index) for index in range(int((last - first) // step) + 1)]


def value_at(base: Frozen, path: str) -> Any:
    """Return the value at the dotted `path` of a configuration; None if it has none."""
    value: Any = base
    for part in path.split("."):
        value = getattr(value, part, None)
    return value


def as_list(value: Choice | list[Choice]) -> list[Choice]:
    return value if isinstance(value, list) else [value]
