"""`kt-ray report`: what a study found, as one HTML page that needs no network."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kt_ray._io.tables import html_table
from kt_ray.search.summary import front_of, rows_of, summarise
from kt_ray.tracking.figures import interactive_histogram, study_figures

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna import Study

Sections = Mapping[str, "go.Figure | str"]

STYLE = (
    "body{font-family:system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;font-size:.9em}td,th{padding:.25em .8em;border-bottom:1px solid #ddd}"
    "h2{margin-top:2em}.wide{overflow-x:auto}"
)
EVALUATION = ("name", "mean", "min", "max", "agreement", "parameters", "multiply_adds", "seconds")
SHOWN_ROWS = ("source", "trained target", "translated", "pruned block")  # of the histogram: more hide each other


def report(study: Study, evaluation: Mapping[str, Any] | None = None) -> str:
    """Return the page: summary, best parameters, evaluation, Optuna's figures, every trial.

    `evaluation` is `Evaluation.to_dict()`: `rows` with name, mean, min, max, accuracies, agreement, cost.
    """
    summary = summarise(study)
    facts = {name: value for name, value in summary.row().items() if value is not None}
    sections: dict[str, go.Figure | str] = {"Summary": _pairs(facts)}
    if summary.best_params:
        sections["Best parameters"] = _pairs(summary.best_params)
    if len(study.directions) > 1:
        sections["Pareto trials"] = html_table(front_of(study))
    if evaluation:
        rows = evaluation["rows"]
        names = [name for name in EVALUATION if any(name in row for row in rows)]
        sections["Evaluation on test images"] = html_table([{name: row.get(name) for name in names} for row in rows])
        accuracies = {row["name"]: row["accuracies"] for row in rows if row["name"] in SHOWN_ROWS}
        sections["Accuracy of the test members"] = interactive_histogram(accuracies)
    sections |= study_figures(study)
    sections["Trials"] = html_table(rows_of(study))
    return page(f"Study {study.study_name}", sections)


def _pairs(values: Mapping[str, object]) -> str:
    return html_table([{"": name, "value": value} for name, value in values.items()])


def page(title: str, sections: Sections) -> str:
    """One self-contained HTML page, a section a heading: a plotly figure, or HTML as text. plotly is inlined once."""
    body, with_plotly = [], True
    for heading, content in sections.items():
        body.append(f"<h2>{html.escape(heading)}</h2>")
        if isinstance(content, str):
            body.append(f'<div class="wide">{content}</div>')
        else:
            body.append(content.to_html(full_html=False, include_plotlyjs=with_plotly))
            with_plotly = False
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n" + "\n".join(body) + "\n</body></html>\n"
    )
