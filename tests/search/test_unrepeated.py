"""TPE asks for no point of a finite space twice."""

from __future__ import annotations

import optuna

from kt_ray.config import StudyConfig
from kt_ray.search.study import SearchStudy

SPACE = {
    "translator.output": {"categorical": ["direct", "residual"]},
    "translator.base": {"categorical": ["pruned", "merged"], "when": {"translator.output": "residual"}},
    "training.batch_size": {"int": [1, 4]},
}


def searched(space: dict[str, object], trials: int) -> list[dict[str, object]]:
    """Return the points of a search whose accuracy grows with the batch size."""
    sampler = {"name": "tpe", "options": {"n_startup_trials": 3, "multivariate": True, "group": True}}
    search = {"sampler": sampler, "pruner": {"name": "none"}}
    config = StudyConfig.model_validate({"name": "small", "space": space, "search": search})
    study = SearchStudy(config, optuna.storages.InMemoryStorage())
    points = []
    for _ in range(trials):
        candidate = study.ask()
        points.append(candidate.values)
        study.end(candidate, {"accuracy_mean": candidate.values["training.batch_size"] / 4}, 1.0, pruned=False)
    return points


def test_points_of_a_finite_space_are_not_asked_for_twice() -> None:
    points = searched(SPACE, 9)
    assert all(point not in points[:number] for number, point in enumerate(points))
    assert all(("translator.base" in point) is (point["translator.output"] == "residual") for point in points)


def test_a_search_goes_on_when_every_point_was_tried() -> None:
    points = searched({"training.batch_size": {"int": [1, 2]}}, 5)
    assert {point["training.batch_size"] for point in points} == {1, 2}


def test_the_same_seed_draws_the_same_points() -> None:
    assert searched(SPACE, 8) == searched(SPACE, 8)
