from __future__ import annotations

import json
from typing import Any

from kt_ray.tracking.tracker import Tracker
from kt_ray.tracking.view import VIEW, newest_page, save_view


def saved(tracker: Tracker, study: str) -> dict[str, Any]:
    """Return the state of the view of `study`."""
    tags = tracker.client.get_experiment(tracker.experiment_id).tags
    state: dict[str, Any] = json.loads(json.loads(tags[VIEW + study])["state"])
    return state


def test_a_view_has_the_objective_then_parameters_and_the_best_trial_first(tracker: Tracker) -> None:
    save_view(tracker, "s", ["loss", "accuracy_mean"], [f"p{number}" for number in range(9)], maximize=False)
    state = saved(tracker, "s")
    parameters = [f"params.`p{number}`" for number in range(5)]
    assert state["selectedColumns"] == ["metrics.`loss`", "metrics.`accuracy_mean`", *parameters]
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`loss`", True)


def test_a_view_finds_the_trials_of_its_study_alone(tracker: Tracker) -> None:
    trials = {study: tracker.trial_run(tracker.study_run(study), study, 0) for study in ("s", "t")}
    save_view(tracker, "s", ["accuracy_mean"], [])
    found = tracker.client.search_runs([tracker.experiment_id], saved(tracker, "s")["searchFilter"])
    assert [run.info.run_id for run in found] == [trials["s"]]


def test_a_view_that_a_person_changed_stays(tracker: Tracker) -> None:
    save_view(tracker, "s", ["accuracy_mean"], [])
    save_view(tracker, "s", ["loss"], [])
    assert saved(tracker, "s")["orderByKey"] == "metrics.`accuracy_mean`"


def test_the_page_that_opens_is_the_newest_studys(tracker: Tracker) -> None:
    runs = f"#/experiments/{tracker.experiment_id}/runs?workflowType=machine_learning"
    assert newest_page(tracker.client) == runs
    for study in ("s", "t"):
        tracker.study_run(study)
        save_view(tracker, study, ["accuracy_mean"], [])
        assert newest_page(tracker.client) == f"{runs}&viewStateShareKey={study}"
