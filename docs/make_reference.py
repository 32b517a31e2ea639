"""Write the reference of study files, `docs/reference/*.md`, from the pydantic models in `kt_ray.config`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from kt_ray.config.reference import MODELS, section_keys

PAGES = {"translation": "study", "distillation": "distillation"}


def write(folder: Path) -> None:
    """Write a page for each kind of file into `folder`."""
    folder.mkdir(exist_ok=True)
    for kind, name in PAGES.items():
        text = "\n".join([f"# Keys of a {name} file", "", *_sections(kind, MODELS[kind], ""), ""])
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _sections(kind: str, model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield the table of a model's keys, then a section for each mapping in it."""
    yield " ".join((model.__doc__ or "").split())
    yield ""
    yield "| key | type | default | what it is |"
    yield "|---|---|---|---|"
    keys = section_keys(kind, model, prefix)
    for row in (key.row() for key in keys):
        default = row["default"] if row["default"] in ("", "empty", "null", "required") else f"`{row['default']}`"
        yield f"| `{row['key']}` | {_cell(row['type'])} | {default} | {_cell(row['what it is'])} |"
    yield ""
    for key in keys:
        for inner in key.inner:
            yield f"## `{key.path}`"
            yield ""
            yield from _sections(kind, inner, f"{key.path}.")


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    write(Path(__file__).parent / "reference")
