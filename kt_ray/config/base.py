"""Reading configuration: frozen pydantic models, YAML files, dotted overrides, all faults at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from kt_ray.errors import ConfigError


class Frozen(BaseModel):
    """Base of every configuration model: immutable, unknown keys refused, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, serialize_by_alias=True)


Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file at `path`. Raises ConfigError where it is missing or is not a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no such file: {path}; `kt-ray spaces list` names the study files that ship") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{where}not YAML: {getattr(error, 'problem', None) or error}", str(path)) from None
    except RecursionError:
        raise ConfigError("nested too deeply to be a study file", str(path)) from None
    if not isinstance(content, dict):
        raise ConfigError(f"expected a mapping at the top, got {type(content).__name__}", str(path))
    return content


def set_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set `tree[a][b][c] = value` for the dotted `path` "a.b.c", making the mappings on the way."""
    *parents, leaf = path.split(".")
    for parent in parents:
        child = tree.get(parent)
        if not isinstance(child, dict):
            child = tree[parent] = {}
        tree = child
    tree[leaf] = value


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`["search.trials=20"]` as `{"search.trials": 20}`; values are read as YAML."""
    parsed = {}
    for override in overrides:
        path, separator, value = override.partition("=")
        if not separator or not path:
            raise ConfigError(f"override {override!r} is not of the form path=value, such as search.trials=20")
        try:
            parsed[path.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"override {override!r}: the value is not YAML") from None
    return parsed


def validate(model: type[Model], content: Mapping[str, Any], source: str | None = None) -> Model:
    """`content` as a `model`. Raises ConfigError naming every fault with its path, value and expectation."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError(explain(error), source) from None


_shown = Repr()  # of any value, however large or nested: a few aliases in YAML can stand for billions of entries
_shown.maxlevel, _shown.maxstring, _shown.maxother = 2, 80, 80


def explain(error: ValidationError) -> list[str]:
    """One line for each fault: dotted path, what was expected, the value."""
    problems = []
    for fault in error.errors(include_url=False):
        path = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if fault["type"] == "extra_forbidden":
            message = "unknown key"
        silent = fault["type"] in ("missing", "value_error", "extra_forbidden")
        shown = "" if silent else f", got {_shown.repr(fault['input'])}"
        problems.append(f"{path}: {message}{shown}" if path else f"{message}{shown}")
    return problems


def load_config(model: type[Model], path: Path, overrides: Sequence[str] = ()) -> Model:
    """The YAML file at `path` with dotted `overrides` as a `model`. Raises ConfigError with all faults."""
    content = read_yaml(path)
    for dotted, value in parse_overrides(overrides).items():
        set_path(content, dotted, value)
    return validate(model, content, str(path))
