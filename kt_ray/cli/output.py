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
    """`content` as JSON; NaN and infinities, which JSON lacks, as null."""
    say(json.dumps(_plain(content), indent=2, ensure_ascii=False, default=str))


def show_table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """`rows`, mappings with the same keys, as a table whose columns are those keys."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if not rows:
        say(f"{title}: none" if title else "none")
        return
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for name in rows[0]:
        number = all(isinstance(row.get(name), int | float | None) for row in rows)
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row.get(name)) for name in rows[0]))
    if sys.stdout.isatty():
        Console(markup=False).print(table)
        return
    text = io.StringIO()  # a pipe or a log has no width to fold cells into, and no use for blanks at the end of lines
    Console(file=text, width=1000, markup=False).print(table)
    say("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


def show(content: Any, rows: Sequence[Mapping[str, Any]], format_: str, title: str | None = None) -> None:
    """`content` as JSON or `rows` as a table, as `--format` says."""
    if format_ == "json":
        show_json(content)
    else:
        show_table(rows, title)


def cell(value: Any) -> str:
    """A value as a table shows it: four significant decimals, `-` for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def _plain(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return content
