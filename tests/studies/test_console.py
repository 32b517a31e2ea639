"""What a long command tells."""

from __future__ import annotations

import io

from rich.console import Console

from kt_ray.studies.console import StudyConsole
from kt_ray.translation.evaluation import Evaluation, Row


def test_the_table_of_an_evaluation_fits_a_hundred_columns() -> None:
    seconds = {"source": None, "nearest member's target": 0.78148}
    rows = tuple(Row(name, 0.9375, 0.9, 1.0, (), 0.875, 324, 127_008, taken) for name, taken in seconds.items())
    evaluation = Evaluation(rows, "test", "test", 8, 1000, zoo="z", dataset="mnist5k")
    written = io.StringIO()
    StudyConsole(Console(file=written, width=160)).result(evaluation)
    lines = [line.rstrip() for line in written.getvalue().splitlines()]
    assert lines[0] == "8 test members × 1,000 test images of mnist5k: accuracy by block"
    cells = [line.split() for line in lines if line]
    assert cells[1] == ["block", "mean", "min", "max", "agreement", "parameters", "multiply-adds", "ms", "a", "block"]
    assert cells[3] == ["source", "0.9375", "0.9000", "1.000", "0.8750", "324", "127,008", "-"]
    assert cells[4][-1] == "781.5"
    assert max(map(len, lines)) <= 100
