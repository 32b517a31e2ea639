"""Figures of a study and of an evaluation: Optuna's interactive ones in one HTML page, a histogram as PNG."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kt_ray.tracking.store import quiet

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure
    from optuna import Study

LEAST_TRIALS = 2  # below it there is nothing to rank or to draw a line through

STYLE = (
    "body{font-family:system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}h2{margin-top:2em}"
)


def accuracy_histogram(accuracies: Mapping[str, Sequence[float]], title: str = "Test accuracy") -> Figure:
    """Histogram of accuracies in [0, 1], one value a member, one colour a row such as "source" or "translated"."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    edges = [step / 50 for step in range(51)]
    for name, values in accuracies.items():
        if len(values):
            mean = sum(values) / len(values)
            axes.hist(values, bins=edges, alpha=0.5, label=f"{name}: mean {mean:.3f}")
    axes.set(xlim=(0, 1), xlabel="accuracy", ylabel="members", title=title)
    if axes.patches:
        axes.legend()
    return figure


def study_figures(study: Study) -> dict[str, go.Figure]:
    """Optuna's figures by heading, those that the study has trials enough for.

    History, intermediate values, importance, parallel coordinates and slices; the Pareto front for several
    objectives, with the other figures drawn for the first one.
    """
    import optuna
    from optuna import visualization
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    many = len(study.directions) > 1
    target = (lambda trial: float(trial.values[0])) if many else None
    name = _objective(study)
    shared = set.intersection(*(set(trial.params) for trial in complete)) if complete else set()
    searched = any(len({str(trial.params[key]) for trial in complete}) > 1 for key in shared)
    figures: dict[str, go.Figure] = {}
    with quiet():
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            if complete:
                figures["History"] = visualization.plot_optimization_history(study, target=target, target_name=name)
            if many and complete and len(study.directions) <= 3:
                figures["Pareto front"] = visualization.plot_pareto_front(study)
            if not many and any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
                figures["Intermediate values"] = visualization.plot_intermediate_values(study)
            if len(complete) >= LEAST_TRIALS and any(trial.params for trial in complete):
                if searched and len({(target or _value)(trial) for trial in complete}) > 1:
                    figures["Importance"] = visualization.plot_param_importances(study, target=target, target_name=name)
                figures["Parallel coordinates"] = visualization.plot_parallel_coordinate(
                    study, target=target, target_name=name
                )
                figures["Slices"] = visualization.plot_slice(study, target=target, target_name=name)
        finally:
            optuna.logging.set_verbosity(verbosity)
    return figures


def _value(trial: object) -> float:
    return float(trial.value)  # type: ignore[attr-defined]


def _objective(study: Study) -> str:
    names = study.metric_names
    return names[0] if names else "objective"


def page(title: str, sections: Mapping[str, go.Figure | str]) -> str:
    """One self-contained HTML page: a section a heading, of a plotly figure or of HTML text. Needs no network."""
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
    return f"<table><tr>{head}</tr>{body}</table>"
