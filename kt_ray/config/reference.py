"""The reference of a study file's keys, read from the pydantic models."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from kt_ray.config.distillation import DistillConfig, DistillTrialConfig
from kt_ray.config.study import StudyConfig
from kt_ray.errors import ConfigError

Section: TypeAlias = type[BaseModel]
MODELS: dict[str, type[StudyConfig | DistillConfig]] = {"translation": StudyConfig, "distillation": DistillConfig}
TRIAL = "trial."  # of a translation's file: what its space samples, without this prefix
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥", "max_length": "length ≤"}
READERS = {  # of a section, also of those within it: the module or package that uses its values
    "code": "kt_ray.config.study_code",
    "dataset": "kt_ray.data",
    "pair": "kt_ray.networks.chosen",
    "zoo": "kt_ray.zoo",
    "trial": "kt_ray.translation",
    "trial.translator": "kt_ray.translation.translator",
    "trial.loss": "kt_ray.translation.losses",
    "trial.augmentation": "kt_ray.translation.augmentations",
    "trial.training": "kt_ray.translation.training",
    "teacher": "kt_ray.distillation.stages",
    "paraphraser": "kt_ray.distillation.paraphrasing",
    "student": "kt_ray.distillation.networks",
    "method": "kt_ray.distillation.methods",
    "training": "kt_ray.distillation.training",
    "space": "kt_ray.search.space",
    "search": "kt_ray.search",
    "search.sampler": "kt_ray.search.samplers",
    "search.pruner": "kt_ray.search.samplers",
    "ray": "kt_ray.jobs.connection",
    "storage": "kt_ray.studies.workspace",
}


@dataclass(frozen=True)
class Key:
    """A key of the files of some `kinds`: its dotted `path`, the model that has it as a field, and that field."""

    kinds: tuple[str, ...]
    path: str
    section: Section
    field: FieldInfo

    @property
    def type(self) -> str:
        """Its type in words."""
        return _words(self.field.annotation)

    @property
    def range(self) -> str:
        """Its bounds, as "≥ 0, < 1"; empty if it has none."""
        return ", ".join(dict.fromkeys([*_bounds(self.field.metadata), *_nested_bounds(self.field.annotation)]))

    @property
    def default(self) -> str:
        """Its default as YAML has it; "required" if there is none, empty for a mapping with keys of its own."""
        value = self.field.get_default(call_default_factory=True)
        if value is PydanticUndefined:
            return "required"
        if isinstance(value, BaseModel):
            return ""
        if value is None or isinstance(value, bool):
            return "null" if value is None else str(value).lower()
        if isinstance(value, tuple):
            return str([str(entry) if isinstance(entry, BaseModel) else entry for entry in value])
        return str(value) or "empty"

    @property
    def description(self) -> str:
        """The description of the key, or of the mapping that it stands for."""
        return self.field.description or " ".join(_doc(model) for model in self.inner)

    @property
    def inner(self) -> list[Section]:
        """The models of the mappings that are its value, or part of it."""
        return [model for model in _models(self.field.annotation) if model is not self.section]

    @property
    def sampled_as(self) -> str | None:
        """Its path in a search space; None if no space can have it."""
        if self.kinds[0] == "translation":
            return self.path[len(TRIAL) :] if self.path.startswith(TRIAL) and not self.inner else None
        head = self.path.partition(".")[0]
        return self.path if head in DistillTrialConfig.model_fields and not self.inner else None

    @property
    def reader(self) -> str:
        """The module or package that uses its value; empty for names and descriptions."""
        parts = self.path.split(".")
        sections = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next((READERS[section] for section in sections if section in READERS), "")

    def row(self) -> dict[str, str]:
        """Return it as a row among the keys of its mapping."""
        type_ = ", ".join(text for text in (self.type, self.range) if text)
        return {"key": self.path, "type": type_, "default": self.default, "what it is": self.field.description or ""}

    def facts(self) -> dict[str, str]:
        """Everything above by name, without what is empty."""
        found = {
            "file": " or ".join(self.kinds),
            "type": self.type,
            "range": self.range,
            "default": self.default,
            "description": self.description,
            "in a space": self.sampled_as or "",
            "section": _doc(self.section),
            "read by": self.reader,
        }
        return {name: text for name, text in found.items() if text}


def section_keys(kind: str, model: Section, prefix: str = "") -> list[Key]:
    """Return the keys of one model, whose paths begin with `prefix`."""
    return [Key((kind,), f"{prefix}{field.alias or name}", model, field) for name, field in model.model_fields.items()]


def all_keys(kind: str, model: Section | None = None, prefix: str = "") -> Iterator[Key]:
    """Yield every key of the files of one kind, a mapping before the keys in it."""
    for key in section_keys(kind, model or MODELS[kind], prefix):
        yield key
        for inner in key.inner:
            yield from all_keys(kind, inner, f"{key.path}.")


def find(path: str) -> list[Key]:
    """Return the keys at `path`, a path of a study file or of a search space; one for each meaning that it has.

    Raises ConfigError with the nearest paths if no file has it.
    """
    keys = [key for kind in MODELS for key in all_keys(kind)]
    found: dict[tuple[str, ...], Key] = {}
    for key in keys:
        if path in (key.path, key.path.removeprefix(TRIAL)):
            meaning = (key.path, key.type, key.range, key.default, key.description)
            found[meaning] = replace(key, kinds=(*found[meaning].kinds, *key.kinds)) if meaning in found else key
    if not found:
        known = dict.fromkeys(key.path.removeprefix(TRIAL) for key in keys)
        near = [name for name in known if name.endswith(f".{path}")] or difflib.get_close_matches(path, known, 3, 0.5)
        raise ConfigError(
            f"no key {path[:80]!r} in a study file; near are {', '.join(near[:6] or StudyConfig.model_fields)}"
        )
    return list(found.values())


def _models(annotation: Any) -> list[Section]:
    """Return the models in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _bounds(metadata: list[Any]) -> list[str]:
    return [
        f"{sign} {getattr(entry, name)}"
        for entry in metadata
        for name, sign in BOUNDS.items()
        if getattr(entry, name, None) is not None
    ]


def _nested_bounds(annotation: Any) -> list[str]:
    """Return the bounds within an annotation, such as those of `PositiveInt | None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [bound for part in get_args(annotation) for bound in _nested_bounds(part)]
    return _bounds(list(getattr(annotation, "__metadata__", ())))


def _words(annotation: Any) -> str:
    """Return an annotation in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in arguments))
    if origin is tuple:
        several = len(arguments) == 2 and arguments[1] is ...
        return f"list of {_words(arguments[0])}" if several else f"[{', '.join(map(_words, arguments))}]"
    if origin is dict:
        return f"mapping to {_words(arguments[1])}"
    if hasattr(annotation, "__metadata__"):
        return _words(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "Any": "anything"}
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, name)


def _doc(model: Section) -> str:
    return " ".join((model.__doc__ or "").split())
