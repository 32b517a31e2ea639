"""`kt-ray report`: what a study found, as one HTML page that needs no network."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_ray._io.text import number
from kt_ray.tracking.figures import interactive_histogram, study_figures

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna import Study
    from optuna.trial import FrozenTrial

Sections = Mapping[str, "go.Figure | str"]

STYLE = (
    "body{font-family:system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;font-size:.9em}td,th{padding:.25em .8em;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child,th:first-child{text-align:left}h2{margin-top:2em}.wide{overflow-x:auto}"
)
EVALUATION = ("name", "mean", "min", "max", "agreement", "parameters", "multiply_adds", "seconds")
SHOWN_ROWS = ("source", "trained target", "translated", "pruned block")  # of the histogram: more hide each other


def write_report(
    path: Path, study: Study, evaluation: Mapping[str, Any] | None = None, facts: Mapping[str, object] | None = None
) -> Path:
    """Write the report of `study` to `path` and return it; see `report`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(report(study, evaluation, facts), encoding="utf-8")
    return temporary.replace(path)


def report(study: Study, evaluation: Mapping[str, Any] | None = None, facts: Mapping[str, object] | None = None) -> str:
    """The page: summary with `facts` (zoo, dataset, device-hours, …), evaluation, Optuna's figures, every trial.

    `evaluation` is `Evaluation.to_dict()`: `rows` with name, mean, min, max, accuracies, agreement, cost.
    """
    sections: dict[str, go.Figure | str] = {"Summary": _summary(study, facts or {})}
    if evaluation:
        rows = evaluation["rows"]
        names = [name for name in EVALUATION if any(name in row for row in rows)]
        cells = [[number(row.get(name)) for name in names] for row in rows]
        sections["Evaluation on test images"] = table(names, cells)
        accuracies = {row["name"]: row["accuracies"] for row in rows if row["name"] in SHOWN_ROWS}
        sections["Accuracy of the test members"] = interactive_histogram(accuracies)
    sections |= study_figures(study)
    sections["Trials"] = _trials(study)
    return page(f"Study {study.study_name}", sections)


def _summary(study: Study, facts: Mapping[str, object]) -> str:
    """States, best trials with their parameters, and `facts`."""
    trials = study.get_trials(deepcopy=False)
    states = Counter(trial.state.name.lower() for trial in trials)
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none yet"
    rows: list[list[object]] = [["trials", counted]]
    several = len(study.directions) > 1
    for trial in study.best_trials if states["complete"] else []:
        rows.append(["Pareto trial" if several else "best trial", trial.number])
        rows += [[name, value] for name, value in zip(_objectives(study), trial.values, strict=True)]
        rows += [] if several else [[name, value] for name, value in trial.params.items()]
    rows += [[name, value] for name, value in facts.items()]
    return table(["", ""], rows)


def _trials(study: Study) -> str:
    trials = study.get_trials(deepcopy=False)
    names = sorted({name for trial in trials for name in trial.params})
    rows = [
        [
            trial.number,
            trial.state.name.lower(),
            *_values(study, trial),
            *(trial.params.get(name, "") for name in names),
        ]
        for trial in trials
    ]
    return table(["trial", "state", *_objectives(study), *names], rows)


def _values(study: Study, trial: FrozenTrial) -> Sequence[object]:
    return trial.values or [""] * len(study.directions)


def _objectives(study: Study) -> list[str]:
    count = len(study.directions)
    return study.metric_names or (["objective"] if count == 1 else [f"objective {number}" for number in range(count)])


def page(title: str, sections: Sections) -> str:
    """One self-contained HTML page, a section a heading: a plotly figure, or HTML as text. plotly is inlined once."""
    body, with_plotly = [], True
    for heading, content in sections.items():
        body.append(f"<h2>{html.escape(heading)}</h2>")
        if isinstance(content, str):
            body.append(content)
        else:
            body.append(content.to_html(full_html=False, include_plotlyjs=with_plotly))
            with_plotly = False
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An HTML table; floats with four digits."""
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in cells)
    return f'<div class="wide"><table>{f"<tr>{head}</tr>" if any(header) else ""}{body}</table></div>'
