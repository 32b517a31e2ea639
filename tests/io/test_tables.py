"""Tables of text: as wide as asked, words whole, numbers with four significant digits."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kt_ray._io.tables import cell, fitting, render

ROWS: list[dict[str, Any]] = [
    {"trial": 0, "state": "COMPLETE", "training.learning_rate": 0.0125, "augmentation.noise.std": 0.1, "reason": None},
    {"trial": 11, "state": "FAIL", "training.learning_rate": 3.4e-05, "augmentation.noise.std": None, "reason": "a"},
]
SENTENCE = "Translator families against each other, each with its own width, depth and dropout."


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.9, "0.9000"),
        (1.0, "1.000"),
        (3.4e-05, "3.400e-05"),
        (1234.56, "1235"),
        (56789.1, "56,789"),
        (0.0, "0.000"),
        (float("inf"), "inf"),
        (float("nan"), "-"),
        (None, "-"),
        (True, "yes"),
        (7840, "7,840"),
        ("text", "text"),
    ],
)
def test_cells(value: Any, shown: str) -> None:
    assert cell(value) == shown


@pytest.mark.parametrize("width", [40, 80, 160, None])
@pytest.mark.parametrize("rows", [ROWS, [{"name": "architectures", "description": SENTENCE}]])
def test_tables_fit_with_their_words_whole(rows: list[dict[str, Any]], width: int | None) -> None:
    text = render(rows, "a title", width)
    assert max(map(len, text.splitlines())) <= (width or 1000)
    words = {word for row in rows for value in row.values() for word in cell(value).split()}
    words |= {part for name in rows[0] for part in re.split(r"(?<=\.)", name)}
    assert all(word in text for word in words)


def test_names_of_columns_fold_before_rows_do() -> None:
    narrow, wide = render(ROWS, width=70).splitlines(), render(ROWS).splitlines()
    assert len(narrow) == len(wide) + 2  # "augmentation.noise.std" takes three lines
    assert len(render(ROWS, width=30).splitlines()) > 2 * len(ROWS[0])


def test_columns_that_fit_in_their_order() -> None:
    names = ["trial", "augmentation.noise.std", "training.learning_rate", "state"]
    assert fitting(ROWS, names, 1000) == names
    assert fitting(ROWS, names, 30) == ["trial", "augmentation.noise.std"]
    assert fitting(ROWS, names, 20) == ["trial", "state"]
