"""Reading configuration: frozen pydantic models, YAML files, dotted overrides, all faults at once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import Repr
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from kt_ray.config.source import Source
from kt_ray.config.yaml_rules import parse
from kt_ray.errors import ConfigError
from kt_ray.registry import register


class Frozen(BaseModel):
    """Base of every configuration model: immutable, unknown keys refused, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, serialize_by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, content: Any) -> Any:
        """Python counts true as 1: a truth value for a number is given on as text, which is then refused there."""
        if not isinstance(content, Mapping) or not any(isinstance(value, bool) for value in content.values()):
            return content
        numbers = _numbers(cls)
        return {
            name: str(value).lower() if isinstance(value, bool) and name in numbers else value
            for name, value in content.items()
        }


@functools.cache
def _numbers(model: type[BaseModel]) -> frozenset[str]:
    """Return names of fields that take numbers, and neither truth values nor text."""
    return frozenset(
        name
        for name, field in model.model_fields.items()
        if (kinds := _kinds(field.annotation)) & {int, float} and not kinds & {bool, str}
    )


def _kinds(annotation: Any) -> set[Any]:
    """Return the plain types that `annotation` is made of, unions and Annotated taken apart."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kinds(arguments[0])
    if origin in (Union, UnionType):
        return set().union(*(_kinds(argument) for argument in arguments))
    return {annotation}


def check_registered(kind: str, name: str, options: Mapping[str, Any], *others: str) -> None:
    """Raise ValueError unless something of this kind is registered as `name` and takes `options`.

    `others` are names that are no entries of the registry, for the message.
    """
    try:
        getattr(register, kind).get(name, *others).parse(options)
    except ConfigError as error:
        raise ValueError("; ".join(error.problems)) from None


def _one_device(gpus: float) -> float:
    if gpus > 1:
        raise ValueError(f"a trial or zoo actor computes on one GPU, got {gpus:g}; give a share from 0 to 1")
    return gpus


class Resources(Frozen):
    """The share of a node that a trial or a zoo actor takes."""

    cpus: PositiveFloat = 1.0
    gpus: Annotated[float, Field(ge=0), AfterValidator(_one_device)] = 0.0
    resources: dict[str, PositiveFloat] = Field(default_factory=dict, description="custom Ray resources")
    label_selector: dict[str, str] = Field(default_factory=dict, description="labels a node must have")

    @property
    def demand(self) -> dict[str, float]:
        """Amounts by the names of Ray's resources; none is 0."""
        demand = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {name: amount for name, amount in demand.items() if amount}


Model = TypeVar("Model", bound=BaseModel)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`["search.trials=20"]` as `{"search.trials": 20}`; values are read as YAML."""
    parsed = {}
    for override in overrides:
        path, separator, value = override.partition("=")
        if not separator or not path:
            raise ConfigError(f"override {override!r} is not of the form path=value, such as search.trials=20")
        try:
            parsed[path.strip()] = parse(value)
        except (yaml.YAMLError, RecursionError):
            raise ConfigError(f"override {_shown.repr(override)}: the value is not YAML") from None
    return parsed


def validate(model: type[Model], content: Mapping[str, Any], source: str | None = None) -> Model:
    """`content` as a `model`. Raises ConfigError naming every fault with its path, value and expectation."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError(explain(error), source) from None


_shown = Repr()  # of any value, however large or nested: a few aliases in YAML can stand for billions of entries
_shown.maxlevel, _shown.maxstring, _shown.maxother = 2, 80, 80


UNSEEN = "<"  # before what pydantic puts into a path to say which model of a union was meant


def explain(error: ValidationError) -> list[str]:
    """One line for each fault: dotted path, what was expected, the value."""
    problems = []
    for fault in error.errors(include_url=False):
        path = ".".join(str(part) for part in fault["loc"] if not str(part).startswith(UNSEEN))
        message = fault["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if fault["type"] == "extra_forbidden":
            message = "unknown key"
        silent = fault["type"] in ("missing", "value_error", "extra_forbidden")
        shown = "" if silent else f", got {_shown.repr(fault['input'])}"
        problems.append(f"{path}: {message}{shown}" if path else f"{message}{shown}")
    return problems


def read_source(path: Path, overrides: Sequence[str] = (), folders: Sequence[Path] = ()) -> Source:
    """The YAML file at `path` with dotted `overrides`, which may include files of `folders`. Raises ConfigError."""
    source = Source(path, folders)
    for dotted, value in parse_overrides(overrides).items():
        source.override(dotted, value)
    return source


def validate_source(model: type[Model], source: Source) -> Model:
    """`source` as a `model`. Raises ConfigError naming every fault with its line, path, value and expectation."""
    try:
        return model.model_validate(source.content)
    except ValidationError as error:
        raise source.error(explain(error)) from None
