"""The description of a study's run in MLflow: the study's result, with links, in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kt_ray.tracking.tracker import Tracker
from kt_ray.tracking.view import run_page, version_page, view_page

if TYPE_CHECKING:
    from kt_ray.tracking.promotion import Candidate, ChampionResult

NOTE = "mlflow.note.content"  # tag that MLflow's UI shows as the description of a run or a registered model
PARENT = "mlflow.parentRunId"
BEST = "best."  # before the name of a parameter, in the tags of a study's run


def describe_study(tracker: Tracker, model_name: str, candidate: Candidate, result: ChampionResult) -> None:
    """Write on the run of the candidate's study what it came to: description, best parameters, link to the model."""
    trial_run = tracker.run_id(candidate.run_id)
    trial = tracker.client.get_run(trial_run)
    study_run = trial.data.tags.get(PARENT, trial_run)
    version = version_page(model_name, result.version)
    trials = f"; [all trials]({view_page(tracker.experiment_id, candidate.study)})" if study_run != trial_run else ""
    params = "".join(f"| {_cell(name)} | {_cell(value)} |\n" for name, value in sorted(trial.data.params.items()))
    page = run_page(tracker.experiment_id, trial_run)
    report = run_page(tracker.experiment_id, study_run, "artifacts")
    text = (
        f"**{_cell(candidate.study)}**: best trial [trial {candidate.trial}]({page}), registered as "
        f"[{_cell(model_name)} version {result.version}]({version}){', the champion' if result.promoted else ''}"
        f"{trials}.\n\n"
        f"{result.comparison}\n\n"
        + (f"**Weak:** {result.weakness}\n\n" if result.weakness else "")
        + f"Go on with `kt-ray resume {candidate.study}`; the report is [report.html]({report}), "
        "figures are beside it.\n\n"
        + (f"| best parameter | value |\n|---|---|\n{params}\n" if params else "")
        + candidate.card
    )
    best = {f"{BEST}{name}": value for name, value in trial.data.params.items()}
    tracker.tag(study_run, {NOTE: text, "kt_ray.model": f"models:/{model_name}/{result.version}", **best})


def _cell(text: str) -> str:
    """Return `text` as it may be in a table of Markdown."""
    return " ".join(text.replace("|", "\\|").split())
