"""Tables of result files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with a row for each mapping; the keys of the first are the heads of the columns."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([row[head] for head in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def bullets(headline: Mapping[str, float]) -> str:
    """Return a line for each figure."""
    return "\n".join(f"- {name}: {value:.2f}" for name, value in headline.items())
