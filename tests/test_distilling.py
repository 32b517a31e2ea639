"""`kt-ray distill` from file to registry: real Ray, real Optuna, real MLflow, small networks."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from kt_ray import distilling
from kt_ray.config import DistillConfig, validate
from kt_ray.distillation.distill import load_student
from kt_ray.errors import ConfigError
from kt_ray.narrator import Narrator
from kt_ray.search.space import problems
from kt_ray.search.storage import open_storage
from kt_ray.search.study import SearchStudy
from kt_ray.tracking.tracker import Tracker
from kt_ray.workspace import Workspace

FIT = {"epochs": 2, "learning_rate": 0.05, "schedule": "cosine", "crop": 0, "batch_size": 64}


def config(name: str, **changes: object) -> DistillConfig:
    def resnet(width: int) -> dict[str, object]:
        return {"resnet": {"depth": 8, "width": width, "stem_stride": 2}}

    content = {
        "name": name,
        "dataset": {"name": "mnist5k", "train_images": 256, "selection_images": 64},
        "teacher": {"network": resnet(6), "training": FIT},
        "paraphraser": {"training": FIT | {"epochs": 1}},
        "student": resnet(4),
        "training": FIT,
    }
    return validate(DistillConfig, content | changes)


def run(configuration: DistillConfig, root: Path) -> distilling.Distillation:
    with Narrator(Console(quiet=True)) as narrator:
        made = distilling.run(configuration, Workspace.open(root), narrator)
    assert made is not None
    return made


def test_a_student_is_trained_once_and_registered(workspace: Path) -> None:
    made = run(config("one"), workspace)
    again = run(config("one"), workspace)
    assert again == made
    tracker = Tracker(Workspace.open(workspace).tracking_uri, "kt_ray")
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert len(runs) == 1
    assert runs[0].info.status == "FINISHED"
    assert runs[0].data.metrics["test_accuracy"] == made.rows[-1].accuracy
    history = tracker.client.get_metric_history(runs[0].info.run_id, "teacher.loss")
    assert [metric.step for metric in history] == [1, 2]
    versions = tracker.client.search_model_versions("name = 'kt-student'")
    assert len(versions) == 1
    assert float(versions[0].tags["kt_ray.accuracy"]) == made.rows[-1].accuracy


@pytest.mark.slow
def test_a_search_over_students(workspace: Path, ray_session: None) -> None:
    space = {
        "method.name": {"categorical": ["ft", "kd"]},
        "method.ft.beta": {"float": [10.0, 500.0], "log": True, "when": {"method.name": "ft"}},
    }
    search = {"trials": 3, "concurrency": 1, "pruner": {"name": "none"}}
    configuration = config("searched", space=space, search=search)
    assert problems(configuration.space, configuration.trial) == []
    made = run(configuration, workspace)
    study = SearchStudy(configuration, open_storage(Workspace.open(workspace).study_storage))
    best = study.best()
    assert study.finished() == 3
    assert best is not None
    assert best.values == [made.selection_accuracy]
    assert load_student(made.student).config.method.name == best.params["method.name"]
    cached = Path(Workspace.open(workspace).checkpoints("distillation"))
    assert not list(cached.glob("*.partial*"))
    more = configuration.model_copy(update={"search": configuration.search.model_copy(update={"trials": 4})})
    run(more, workspace)
    assert study.finished() == 4


def test_faults_of_the_space_name_the_fields_of_a_distillation() -> None:
    wrong = config("wrong", space={"method.ft.betas": {"float": [1.0, 2.0]}})
    assert problems(wrong.space, wrong.trial) == [
        "method.ft.betas: unknown path; method.ft has beta, layers, p, translator_learning_rate"
    ]


def test_an_unknown_layer_stops_before_anything_is_trained(workspace: Path) -> None:
    with pytest.raises(ConfigError, match="no layer 'stage9'"):
        run(config("wrong", method={"name": "ft", "ft": {"layers": ["stage9"]}}), workspace)
    assert not list(workspace.rglob("*.safetensors"))
