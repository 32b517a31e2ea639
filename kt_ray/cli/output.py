"""Printing: tables for people, JSON for programs, one line for a fault."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from kt_ray._io.tables import Row, render, terminal_width
from kt_ray.errors import KTError

UNWRITABLE = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT)  # of a standard output that takes nothing


def prepare_streams() -> None:
    """Make standard streams take any text: characters that do not fit are replaced, a closed one swallows all."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def say(text: str = "") -> None:
    """A line on standard output."""
    typer.echo(text)


def complain(error: KTError) -> None:
    """The error on standard error, each of its lines as one fault."""
    for line in str(error).splitlines():
        typer.echo(f"kt-ray: {line}", err=True)


def show_json(content: Any) -> None:
    """`content` as JSON; NaN and infinities, which JSON does not have, as null."""
    say(json.dumps(_plain(content), indent=2, ensure_ascii=False, default=str))


def show_table(rows: Sequence[Row], title: str | None = None) -> None:
    """`rows`, mappings with the same keys, as a table whose columns are those keys, as wide as the terminal."""
    say(render(rows, title, terminal_width()))


def show(content: Any, rows: Sequence[Row], format_: str, title: str | None = None) -> None:
    """`content` as JSON or `rows` as a table, as `--format` says."""
    if format_ == "json":
        show_json(content)
    else:
        show_table(rows, title)


def _plain(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return content
