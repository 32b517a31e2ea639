"""Tables: plain text that fits a terminal and never breaks a word, and HTML."""

from __future__ import annotations

import io
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from html import escape
from textwrap import fill, wrap
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
PROSE = 24  # characters; a column of sentences is not squeezed below this
GAP = 2  # characters between two columns
UNLIMITED = 10_000  # columns of a pipe or a log, which has no width


def terminal_width() -> int | None:
    """Return the columns of the terminal, or of the variable COLUMNS; None if output goes to a pipe or a log."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None


def cell(value: Any) -> str:
    """Return a value as tables show it: floats with four significant digits, `-` for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and not 1e4 <= abs(value) < 1e15:
        return f"{value:#.4g}".rstrip(".")
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def render(rows: Sequence[Row], title: str | None = None, width: int | None = None) -> str:
    """Return `rows`, mappings with the same keys, as a table whose columns are those keys, at most `width` wide.

    Names of columns are folded at dots and blanks, sentences between words. If that is not enough, each row becomes a
    block of lines, one a key. None for no limit.
    """
    if not rows:
        return f"{title}: none" if title else "none"
    cells = _cells(rows, list(rows[0]))
    widths = _widths(cells, width or UNLIMITED)
    if widths is None:
        return _heading(title, width, "\n\n") + _blocks(cells, width or UNLIMITED)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name, size in widths.items():
        right = all(isinstance(row.get(name), int | float | None) for row in rows)
        table.add_column(_folded(name, size), justify="right" if right else "left", width=size)
    for entry in cells:
        table.add_row(*entry.values())
    text = io.StringIO()
    Console(file=text, force_jupyter=False, width=UNLIMITED, markup=False, highlight=False, color_system=None).print(
        table
    )
    return _heading(title, width, "\n") + "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def render_facts(facts: Mapping[str, Any], title: str | None = None, width: int | None = None) -> str:
    """Return names and their values, a line each; long values are folded between words."""
    cells = {name: cell(value) for name, value in facts.items()}
    return _heading(title, width, "\n\n") + _blocks([cells], width or UNLIMITED)


def fitting(rows: Sequence[Row], names: Sequence[str], width: int) -> list[str]:
    """Return those of `names` whose columns fit beside each other within `width`, earlier names first."""
    kept: list[str] = []
    for name in names:
        if _widths(_cells(rows, [*kept, name]), width) is not None:
            kept.append(name)
    return kept


def html_table(rows: Sequence[Row], title: str | None = None) -> str:
    """Return `rows`, mappings with the same keys, as an HTML table whose columns are those keys."""
    columns = list(rows[0]) if rows else []
    numeric = {name for name in columns if all(isinstance(row.get(name), int | float | None) for row in rows)}

    def line(kind: str, texts: Sequence[str]) -> str:
        cells = (
            f'<{kind} style="text-align: {"right" if name in numeric else "left"}">{escape(text)}</{kind}>'
            for name, text in zip(columns, texts, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    caption = f"<caption>{escape(title)}</caption>" if title else ""
    body = "".join(line("td", [cell(row.get(name)) for name in columns]) for row in rows)
    return f"<table>{caption}<thead>{line('th', columns)}</thead><tbody>{body}</tbody></table>"


def _heading(title: str | None, width: int | None, end: str) -> str:
    return fill(title, width or UNLIMITED, break_long_words=False) + end if title else ""


def _cells(rows: Sequence[Row], names: Sequence[str]) -> list[dict[str, str]]:
    return [{name: cell(row.get(name)) for name in names} for row in rows]


def _widths(cells: Sequence[Mapping[str, str]], width: int) -> dict[str, int] | None:
    """Return how wide each column is in a table of at most `width`; None if words would have to be broken."""
    widths, least = {}, {}
    for name in cells[0]:
        lines = [line for entry in cells for line in entry[name].splitlines()]
        words = [word for text in (_folded(name, 0), *lines) for word in text.split()]
        widths[name] = max(map(cell_len, (name, *lines)))
        least[name] = max(*map(cell_len, words), min(PROSE, max(map(cell_len, ("", *lines)))))
    while sum(widths.values()) + GAP * len(widths) > width:
        loose = [name for name in widths if widths[name] > least[name]]
        if not loose:
            return None
        widths[max(loose, key=widths.__getitem__)] -= 1
    return widths


def _folded(name: str, size: int) -> str:
    """Return the name of a column, over several lines if it is longer than `size`."""
    return name if cell_len(name) <= size else name.replace(".", ".\n").replace(" ", "\n")


def _blocks(cells: Sequence[Mapping[str, str]], width: int) -> str:
    """Return each row as a block of lines `name  value`; long values and those of long names go below them."""
    label = max(map(cell_len, cells[0])) + 2
    beside = label + PROSE <= width
    indent = " " * (label if beside else 2)
    blocks = []
    for entry in cells:
        lines = []
        for name, value in entry.items():
            texts = wrap(value, width - len(indent), break_long_words=False, break_on_hyphens=False) or [""]
            lines += [f"{name:<{label}}{texts.pop(0)}"] if beside else [name]
            lines += [indent + text for text in texts]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
