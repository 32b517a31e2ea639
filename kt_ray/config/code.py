"""The Python files that a study names under `code:`, as text with its SHA-256. Nothing here runs them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from kt_ray.config.base import Frozen, explain
from kt_ray.errors import ConfigError

LARGEST = 256 * 1024  # bytes of a file
MOST = 16  # files
NAME = re.compile(r"(?!.*(?:^|/)\.{0,2}/)[\w./ +-]{1,196}\.py")  # below the study file, no empty part, `.` or `..`


class CodeFile(Frozen):
    """One file: its path relative to the study file, its text, and the SHA-256 of the text in UTF-8."""

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    text: str

    @model_validator(mode="before")
    @classmethod
    def _with_hash(cls, content: Any) -> Any:
        """A file written out in a study file needs no hash."""
        if isinstance(content, dict) and "sha256" not in content and isinstance(content.get("text"), str):
            return content | {"sha256": _digest(content["text"])}
        return content

    @model_validator(mode="after")
    def _is_what_it_says(self) -> CodeFile:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"expected a file beside or below the study file, such as net.py, got {self.name[:80]!r}")
        if len(self.text.encode(errors="surrogatepass")) > LARGEST:
            raise ValueError(_too_large(self.name))
        if "\0" in self.text:
            raise ValueError(f"the file {self.name} holds a NUL byte; it is no Python text")
        if self.sha256 != _digest(self.text):
            raise ValueError(f"the file {self.name} does not have the SHA-256 that stands beside it")
        return self


def read_code(entries: Any, folder: Path) -> tuple[CodeFile, ...]:
    """Return the files that `code:` of a study file in `folder` names, each by its path or written out as a mapping.

    Raises ConfigError with a line `code.N: …` for each that is missing, outside `folder`, too large or no UTF-8 text.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, str) or len(entries) > MOST:
        raise ConfigError(f"code: expected a list of at most {MOST} Python files, such as [net.py]")
    files, faults = [], []
    for number, entry in enumerate(entries):
        try:
            content = {"name": entry, "text": _text(entry, folder)} if isinstance(entry, str) else entry
            files.append(CodeFile.model_validate(content))
        except ValidationError as error:
            faults += [f"code.{number}: {fault}" for fault in explain(error)]
        except ConfigError as error:
            faults += [f"code.{number}: {fault}" for fault in error.problems]
    names = [file.name for file in files]
    faults += [f"code: {name} is named twice" for name in sorted({name for name in names if names.count(name) > 1})]
    if faults:
        raise ConfigError(faults)
    return tuple(files)


def hashes(files: Iterable[CodeFile]) -> dict[str, str]:
    """Return the SHA-256 of each file by its name."""
    return {file.name: file.sha256 for file in files}


def _text(name: str, folder: Path) -> str:
    """Return the text of the file `name` in `folder`. Raises ConfigError."""
    shown = name if len(name) <= 80 else f"…{name[-79:]}"
    try:
        path, home = (folder / name).resolve(), folder.resolve()
        if not NAME.fullmatch(name) or not path.is_relative_to(home):
            raise ConfigError(f"{shown!r} is not a Python file beside or below the study file; copy it there")
        if not path.is_file():
            raise ConfigError(f"no such file: {home / shown}; paths are relative to the study file")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ConfigError(_too_large(name))
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{shown} is no UTF-8 text; save it as UTF-8") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{shown!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _too_large(name: str) -> str:
    return f"the file {name} is larger than {LARGEST // 1024} KiB; code that travels with a study is short"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
