"""Interactive figures of a report: Optuna's of a study, and a histogram of accuracies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kt_ray.search.storage import quiet_optuna
from kt_ray.tracking.store import quiet

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna import Study
    from optuna.trial import FrozenTrial

LEAST_TRIALS = 2  # below it there is nothing to rank or to draw a line through
BINS = 50  # of an accuracy histogram, over [0, 1]


def interactive_histogram(accuracies: Mapping[str, Sequence[float]]) -> go.Figure:
    """Histogram of accuracies in [0, 1], one value a member, one colour a row such as "source" or "translated"."""
    import plotly.graph_objects as go

    bins = {"start": 0, "end": 1 + 1 / BINS, "size": 1 / BINS}
    figure = go.Figure([go.Histogram(x=list(values), name=name, xbins=bins) for name, values in accuracies.items()])
    return figure.update_traces(opacity=0.6).update_layout(
        barmode="overlay", xaxis={"title": "accuracy", "range": [0, 1]}, yaxis={"title": "members"}
    )


def study_figures(study: Study) -> dict[str, go.Figure]:
    """Optuna's figures by heading, those that the study has trials enough for.

    History, Pareto front (two or three objectives), intermediate values, importance, parallel coordinates and slices.
    With several objectives history, importance and slices are drawn for the first one.
    """
    import optuna
    from optuna import visualization
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return {}
    several = len(study.directions) > 1
    first: Callable[[FrozenTrial], float] = lambda trial: float(trial.values[0])  # noqa: E731
    target, name = first if several else None, (study.metric_names or ["objective"])[0]
    figures: dict[str, go.Figure] = {}
    with quiet(), quiet_optuna(optuna.logging.ERROR):
        figures["History"] = visualization.plot_optimization_history(study, target=target, target_name=name)
        if several and len(study.directions) <= 3:
            figures["Pareto front"] = visualization.plot_pareto_front(study)
        if not several and any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
            figures["Intermediate values"] = visualization.plot_intermediate_values(study)
        if len(complete) < LEAST_TRIALS or not any(trial.params for trial in complete):
            return figures
        in_all = set.intersection(*(set(trial.params) for trial in complete))
        varied = any(len({str(trial.params[name]) for trial in complete}) > 1 for name in in_all)
        if varied and len({first(trial) for trial in complete}) > 1:
            figures["Importance"] = visualization.plot_param_importances(
                study, evaluator=FanovaImportanceEvaluator(seed=0), target=target, target_name=name
            )
        figures["Parallel coordinates"] = visualization.plot_parallel_coordinate(study)
        figures["Slices"] = visualization.plot_slice(study, target=target, target_name=name)
    return figures
