"""Tables of plain text that fit a terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

Row = Mapping[str, Any]
UNLIMITED = 1000  # columns of a pipe or a log, which has no width


def cell(value: Any) -> str:
    """Return a value as tables show it: floats with four digits after the point, `-` for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def render(rows: Sequence[Row], title: str | None = None, width: int | None = None) -> str:
    """Return `rows`, mappings with the same keys, as a table whose columns are those keys.

    If it is wider than `width`, each row becomes a block of lines, one a key: no word is broken by a narrow column.
    """
    if not rows:
        return f"{title}: none" if title else "none"
    cells = [{name: cell(row.get(name)) for name in rows[0]} for row in rows]
    if width is not None and natural_width(cells) > width:
        return _blocks(cells, title, width)
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in rows[0]:
        right = all(isinstance(row.get(name), int | float | None) for row in rows)
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for entry in cells:
        table.add_row(*entry.values())
    text = io.StringIO()
    Console(file=text, force_jupyter=False, width=UNLIMITED, markup=False, highlight=False, color_system=None).print(
        table
    )
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def fitting_columns(rows: Sequence[Row], names: Sequence[str], width: int) -> list[str]:
    """Return the first of `names` whose columns fit beside each other within `width`; at least one."""
    cells = [{name: cell(row.get(name)) for name in names} for row in rows]
    kept: list[str] = []
    for name in names:
        if kept and natural_width([{column: entry[column] for column in (*kept, name)} for entry in cells]) > width:
            break
        kept.append(name)
    return kept


def natural_width(cells: Sequence[Mapping[str, str]]) -> int:
    """Return how wide the table of these cells is, if none is folded."""
    widths = [max(len(name), *(_longest(entry[name]) for entry in cells)) for name in cells[0]]
    return sum(widths) + 3 * len(widths) - 1


def _longest(text: str) -> int:
    return max((len(line) for line in text.splitlines()), default=0)


def _blocks(cells: Sequence[Mapping[str, str]], title: str | None, width: int) -> str:
    label = max(map(len, cells[0])) + 2
    lines = [title] if title else []
    for entry in cells:
        lines.append("")
        for name, value in entry.items():
            first, *rest = wrap(value, max(width - label, 20), break_long_words=False, break_on_hyphens=False) or [""]
            lines += [f"{name:<{label}}{first}", *(" " * label + line for line in rest)]
    return "\n".join(lines).strip("\n")
