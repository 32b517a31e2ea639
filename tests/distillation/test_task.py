"""Students as trials: what they share is made before, travels as plain tensors, and is not made again."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest

from kt_ray.config import DistillConfig, DistillTrialConfig, read_source, validate, validate_source
from kt_ray.data import Dataset
from kt_ray.distillation.cache import Cache
from kt_ray.distillation.distill import load_student
from kt_ray.distillation.stages import Progress, Stages
from kt_ray.distillation.task import Shared, StudentTask, choices, given_teachers, prepare
from kt_ray.errors import ConfigError
from kt_ray.networks.state_file import write_state
from kt_ray.studies.spaces import locate


def searched(trial: DistillTrialConfig, **space: object) -> DistillConfig:
    paths = {path.replace("__", "."): distribution for path, distribution in space.items()}
    return validate(DistillConfig, trial.model_dump() | {"name": "s", "space": paths})


def test_what_the_choices_need_is_made_once(
    trial: DistillTrialConfig, dataset: Dataset, stages: Stages, reports: list[Progress], tmp_path: Path
) -> None:
    config = searched(
        trial,
        method__name={"categorical": ["none", "ft", "kd"]},
        paraphraser__rate={"categorical": [0.25, 0.5]},
        method__ft__beta={"float": [1.0, 100.0]},
    )
    shared = prepare(config, stages)
    assert len(shared.facts) == 3  # a teacher and a paraphraser for each rate
    reports.clear()

    away = Shared(str(tmp_path), shared.tensors, shared.facts)  # a node whose directory is still empty
    task = pickle.loads(pickle.dumps(StudentTask(away, dataset)))
    metrics = {}
    for choice in choices(config):
        training = task.training(choice, "cpu")
        metrics[choice.method.name] = training.run_epoch()
    assert metrics.keys() == {"none", "ft", "kd"}
    answers_alone = [path.name for path in tmp_path.glob("*.safetensors")]
    assert len(answers_alone) == 3  # of the two paraphrasers and of the logits
    assert reports == []


def test_a_given_teacher_is_read_by_the_driver_alone(
    trial: DistillTrialConfig, stages: Stages, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name may be relative: trials on other nodes, in other directories, have no such file."""
    monkeypatch.chdir(tmp_path)
    write_state(Path("teacher.safetensors"), stages.network(trial.teacher.network, 5).state_dict())
    teacher = trial.teacher.model_copy(update={"checkpoint": "teacher.safetensors"})
    config = searched(trial.model_copy(update={"teacher": teacher}), method__ft__beta={"float": [1.0, 100.0]})
    given = given_teachers(config, stages)
    Path("teacher.safetensors").unlink()
    shared = prepare(config, dataclasses.replace(stages, given=given))
    task = pickle.loads(pickle.dumps(StudentTask(shared, dataset)))
    assert task.training(config.trial, "cpu").run_epoch()["loss"] > 0


def test_a_trial_makes_what_was_not_listed(trial: DistillTrialConfig, dataset: Dataset, tmp_path: Path) -> None:
    config = searched(trial, paraphraser__rate={"float": [0.1, 0.9]})
    assert len(choices(config)) == 1
    shared = Shared(str(tmp_path / "cache"))
    StudentTask(shared, dataset).training(config.trial, "cpu")
    seen: list[Progress] = []
    Stages(Cache(tmp_path / "cache"), dataset, report=seen.append).student(config.trial)
    assert seen == []


def test_a_finished_trial_leaves_its_student(trial: DistillTrialConfig, stages: Stages, tmp_path: Path) -> None:
    task = StudentTask(prepare(searched(trial), stages), stages.dataset)
    training = task.training(trial, "cpu")
    metrics = training.run_epoch()
    task.export(training, trial, tmp_path, metrics)
    loaded = load_student(tmp_path / "student.safetensors")
    assert (loaded.facts["accuracy"], loaded.facts["images_seen"]) == (metrics["accuracy"], 512)
    assert loaded.config == trial


def test_a_choice_that_cannot_be_carried_out(trial: DistillTrialConfig, stages: Stages) -> None:
    config = searched(trial, method__ft__layers={"categorical": ["stage3", "stage2,stage7"]})
    with pytest.raises(ConfigError, match="no layer 'stage7'"):
        prepare(config, stages)


def test_the_papers_file_is_the_defaults() -> None:
    config = validate_source(DistillConfig, read_source(locate("factor_transfer_paper")))
    assert config.trial == DistillTrialConfig()
    assert (config.method.ft.beta, config.paraphraser.rate, config.method.ft.p) == (500, 0.5, 1)
    assert (config.method.name, config.method.ft.layers) == ("ft", ("stage3",))
    for fit in (config.teacher.training, config.training, config.paraphraser.training):
        assert (fit.learning_rate, fit.momentum, fit.weight_decay, fit.batch_size) == (0.1, 0.9, 5e-4, 128)
    assert (config.training.epochs, config.paraphraser.training.epochs) == (164, 6)
    assert (config.training.schedule, config.training.milestones, config.training.decay) == ("steps", (0.5, 0.75), 0.1)
    assert (config.teacher.network.resnet.depth, config.student.resnet.depth) == (56, 20)
    assert config.name == "factor_transfer_paper"


def test_the_search_that_ships_can_be_carried_out(dataset: Dataset, tmp_path: Path) -> None:
    config = validate_source(DistillConfig, read_source(locate("factor_transfer")))
    assert config.search.objectives[0].metric == "accuracy"
    stages = Stages(Cache(tmp_path), dataset)  # of the same image shape
    for choice in choices(config):
        stages.check(choice)
    assert len(choices(config)) == 5 * 3 * 2
    assert not list(tmp_path.iterdir())
