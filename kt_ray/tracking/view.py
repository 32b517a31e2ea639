"""Pages of MLflow's UI, and a study's trials as one: the best first, with the columns that tell them apart.

MLflow opens its table with the columns Source, Models and Dataset, and a browser remembers what a person changes. A
view saved as a tag of the experiment (https://mlflow.org/releases/3.15.0) is the one setting on the server's side; it
has an address of its own and is listed under Views.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from kt_ray.tracking.store import reaching

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kt_ray.tracking.tracker import Tracker

VIEW = "mlflow.sharedViewState."  # before the key of a view, in the tags of an experiment
TRAINING = "workflowType=machine_learning"  # without it the UI is that of GenAI: a run is an evaluation there
NARROWEST, MARGIN, LETTER = 90, 40, 7.5  # pixels of a column: at least, beside its name, for each letter of that
MOST_PARAMETERS = 5  # columns that fit a laptop's screen beside metrics and the run's name


def save_view(
    tracker: Tracker, study: str, metrics: Sequence[str], parameters: Sequence[str], *, maximize: bool = True
) -> None:
    """Save the view of the trials of `study`, ordered by the first of `metrics`, unless there is one.

    A person may change it in MLflow, and it stays so. Raises TrackingError.
    """
    names = {f"metrics.`{name}`": name for name in metrics}
    first = next(iter(names))
    names |= {f"params.`{name}`": name for name in parameters[:MOST_PARAMETERS]}
    state = {
        "searchFilter": f"tags.`kt_ray.kind` = 'trial' and tags.`kt_ray.study` = '{study}'",
        "orderByKey": first,
        "orderByAsc": not maximize,
        "selectedColumns": list(names),
        "columnOrder": list(names),
        "columnWidths": {column: max(NARROWEST, MARGIN + LETTER * len(name)) for column, name in names.items()},
    }
    now = int(time.time() * 1000)
    view = {"name": study, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    with reaching(tracker.uri):
        if VIEW + study not in tracker.client.get_experiment(tracker.experiment_id).tags:
            tracker.client.set_experiment_tag(tracker.experiment_id, VIEW + study, json.dumps(view))


def run_page(experiment_id: str, run_id: str, tab: str = "") -> str:
    """Return the page of a run, or a tab of it such as `artifacts`, to be put after the server's address."""
    return f"#/experiments/{experiment_id}/runs/{run_id}{tab and '/'}{tab}?{TRAINING}"


def version_page(model_name: str, version: int) -> str:
    """Return the page of a version of a registered model, to be put after the server's address."""
    return f"#/models/{quote(model_name)}/versions/{version}?{TRAINING}"


def view_page(experiment_id: str, study: str) -> str:
    """Return the page of the view of `study`, to be put after the server's address."""
    return f"#/experiments/{experiment_id}/runs?{TRAINING}&viewStateShareKey={quote(study)}"


def newest_page(client: MlflowClient) -> str:
    """Return the page of the view of the newest study, of the newest experiment's runs if that has none.

    Empty if there is no experiment but MLflow's own: MLflow's first page then.
    """
    experiments = client.search_experiments(order_by=["last_update_time DESC"])
    experiment = next((found for found in experiments if found.experiment_id != "0"), None)
    if experiment is None:
        return ""
    studies = client.search_runs(
        [experiment.experiment_id], "tags.`kt_ray.kind` = 'study'", max_results=1, order_by=["start_time DESC"]
    )
    for run in studies:
        study = run.data.tags["kt_ray.study"]
        if VIEW + study in experiment.tags:
            return view_page(experiment.experiment_id, study)
    return f"#/experiments/{experiment.experiment_id}/runs?{TRAINING}"
