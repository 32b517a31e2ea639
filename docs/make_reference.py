"""Write the reference of study files, `docs/reference/*.md`, from the pydantic models in `kt_ray.config`."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from kt_ray.config import DistillConfig, StudyConfig

PAGES: dict[str, tuple[type[BaseModel], str]] = {
    "study": (StudyConfig, "Keys of a study file"),
    "distillation": (DistillConfig, "Keys of a distillation file"),
}
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥", "pattern": "matches"}


def write(folder: Path) -> None:
    """Write a page for each kind of file into `folder`."""
    folder.mkdir(exist_ok=True)
    for name, (model, title) in PAGES.items():
        text = "\n".join([f"# {title}", "", *_sections(model, ""), ""])
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _sections(model: type[BaseModel], path: str) -> Iterator[str]:
    """Yield the table of a model's keys, then a section for each mapping in it."""
    yield " ".join((model.__doc__ or "").split())
    yield ""
    yield "| key | type | default | what it is |"
    yield "|---|---|---|---|"
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        inner = [kind for kind in _kinds(field.annotation) if kind is not model]
        nested += [(f"{path}{key}", kind) for kind in inner]
        yield f"| `{path}{key}` | {_type(field)} | {_default(field)} | {_cell(field.description or '')} |"
    yield ""
    for key, kind in nested:
        yield f"## `{key}`"
        yield ""
        yield from _sections(kind, f"{key}.")


def _kinds(annotation: Any) -> list[type[BaseModel]]:
    """Return the models in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _kinds(part)]


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(entry, name)}"
        for entry in field.metadata
        for name, sign in BOUNDS.items()
        if getattr(entry, name, None) is not None
    ]
    return _cell(", ".join([_words(field.annotation), *bounds]))


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
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, name)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return ""
    if value is None:
        return "null"
    if isinstance(value, tuple):
        value = [str(entry) if isinstance(entry, BaseModel) else entry for entry in value]
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "empty"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    write(Path(__file__).parent / "reference")
