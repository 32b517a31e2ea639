"""Stages and trainings on real digits: what changes, what must not, and what is never done twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kt_ray.config import (
    ATOptions,
    ClassifierConfig,
    DistillTrialConfig,
    FitConfig,
    FTOptions,
    MethodConfig,
    ParaphraserConfig,
    TeacherConfig,
)
from kt_ray.data import Dataset
from kt_ray.distillation.cache import Cache
from kt_ray.distillation.factors import Paraphraser
from kt_ray.distillation.features import feature_shapes, run_with_features
from kt_ray.distillation.images import batches
from kt_ray.distillation.methods import build_method
from kt_ray.distillation.paraphrasing import ParaphraserTraining
from kt_ray.distillation.stages import Progress, Stages
from kt_ray.distillation.teaching import KeptTeaching, LiveTeaching
from kt_ray.distillation.training import StudentTraining
from kt_ray.errors import CheckpointError, ConfigError

from .conftest import resnet


def changed(trial: DistillTrialConfig, **fields: object) -> DistillTrialConfig:
    return DistillTrialConfig.model_validate(trial.model_dump() | fields)


def with_method(trial: DistillTrialConfig, name: str, **fields: object) -> DistillTrialConfig:
    return changed(trial, method={"name": name}, **fields)


def test_reconstruction_falls_and_teacher_stays(trial: DistillTrialConfig, stages: Stages, dataset: Dataset) -> None:
    teacher = stages.teacher(trial.teacher)
    before = {name: value.clone() for name, value in teacher.module.state_dict().items()}
    training = ParaphraserTraining(teacher.module, "stage3", trial.paraphraser, dataset)
    losses = [training.run_epoch()["loss"] for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    assert training.finished
    assert all(torch.equal(value, before[name]) for name, value in teacher.module.state_dict().items())


def test_teacher_and_paraphraser_do_not_change_while_the_student_trains(
    trial: DistillTrialConfig, stages: Stages
) -> None:
    cropped = changed(trial, training=trial.training.model_copy(update={"crop": 2}))  # the teacher runs in training
    teacher = stages.teacher(trial.teacher)
    student = stages.network(trial.student, 0)
    method = stages.method(cropped, teacher, student)
    teaching = stages.teaching(teacher, method, cropped.training)
    assert isinstance(teaching, LiveTeaching)
    frozen = [teacher.module, *method.terms["ft"].paraphrasers]
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in frozen]
    training = StudentTraining(student, method, teaching, cropped.training, stages.dataset)
    start = {name: value.clone() for name, value in training.student.state_dict().items()}
    translators = {name: value.clone() for name, value in method.state_dict().items()}
    training.run_epoch()
    for module, state in zip(frozen, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert any(not torch.equal(value, start[name]) for name, value in training.student.state_dict().items())
    assert all(not torch.equal(value, translators[name]) for name, value in method.state_dict().items())
    assert not any("paraphraser" in name for name in method.state_dict())


@pytest.mark.parametrize("name", ["none", "kd", "at", "ft", "ft+kd"])
def test_every_method_learns(name: str, trial: DistillTrialConfig, stages: Stages) -> None:
    config = with_method(trial, name)
    training = stages.student(config)
    metrics = [training.run_epoch() for _ in range(2)]
    assert training.finished
    assert training.images_seen == 1024
    assert metrics[1]["loss"] < metrics[0]["loss"]
    assert {"loss", "cross_entropy", "accuracy", "seconds", "parameters"} <= metrics[0].keys()
    assert metrics[0].keys() - {"loss", "cross_entropy", "accuracy", "seconds", "parameters"} == (
        set() if name == "none" else set(name.split("+"))
    )
    assert metrics[0]["parameters"] == 4934


def test_a_resumed_training_ends_in_the_same_numbers(trial: DistillTrialConfig, stages: Stages, tmp_path: Path) -> None:
    config = with_method(trial, "ft+kd")
    straight = stages.student(config)
    expected = [straight.run_epoch() for _ in range(2)]
    stopped = stages.student(config)
    stopped.run_epoch()
    stopped.save(tmp_path / "checkpoint.safetensors")
    resumed = stages.student(config)
    resumed.load(tmp_path / "checkpoint.safetensors")
    assert resumed.epoch == 1
    metrics = resumed.run_epoch()
    assert {name: value for name, value in metrics.items() if name != "seconds"} == {
        name: value for name, value in expected[1].items() if name != "seconds"
    }
    for module, other in ((straight.student, resumed.student), (straight.method, resumed.method)):
        for name, value in module.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])


def test_a_checkpoint_of_another_student(trial: DistillTrialConfig, stages: Stages, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    stages.student(with_method(trial, "none")).save(path)
    with pytest.raises(CheckpointError, match=r"holds another student than the configuration names"):
        stages.student(with_method(trial, "none", student=resnet(5).model_dump())).load(path)
    with pytest.raises(CheckpointError, match="holds another translators than"):
        stages.student(trial).load(path)


def test_nothing_is_trained_twice(
    trial: DistillTrialConfig, dataset: Dataset, reports: list[Progress], tmp_path: Path
) -> None:
    stages = Stages(Cache(tmp_path), dataset, report=reports.append)
    first = stages.student(trial)
    assert [(entry.stage, entry.epoch, entry.epochs) for entry in reports] == [
        ("teacher", 1, 2),
        ("teacher", 2, 2),
        ("paraphraser of stage3", 1, 3),
        ("paraphraser of stage3", 2, 3),
        ("paraphraser of stage3", 3, 3),
    ]
    reports.clear()
    again = stages.student(trial)
    assert first.run_epoch()["loss"] == again.run_epoch()["loss"]
    # The teacher's 24 channels: 0.5 and 0.51 both give 12 factors; another method, β or student needs nothing new.
    near = changed(trial, paraphraser=trial.paraphraser.model_copy(update={"rate": 0.51}), student=resnet(5))
    stages.student(near)
    stages.student(with_method(trial, "kd"))
    assert reports == []
    stages.student(changed(trial, paraphraser=trial.paraphraser.model_copy(update={"rate": 0.75})))
    assert {entry.stage for entry in reports} == {"paraphraser of stage3"}
    assert not list(tmp_path.glob("*.partial*"))


def test_a_stage_goes_on_where_it_was_stopped(trial: DistillTrialConfig, dataset: Dataset, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        raise Stop

    with pytest.raises(Stop):
        Stages(Cache(tmp_path / "a"), dataset, report=stop).teacher(trial.teacher)
    seen: list[Progress] = []
    resumed = Stages(Cache(tmp_path / "a"), dataset, report=seen.append).teacher(trial.teacher)
    assert [entry.epoch for entry in seen] == [2]
    straight = Stages(Cache(tmp_path / "b"), dataset).teacher(trial.teacher)
    assert resumed.key == straight.key
    for name, value in straight.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name])


@pytest.mark.parametrize("name", ["kd", "at", "ft", "ft+kd"])
def test_kept_answers_are_the_teachers(name: str, trial: DistillTrialConfig, stages: Stages, dataset: Dataset) -> None:
    config = with_method(trial, name)
    teacher = stages.teacher(config.teacher)
    method = stages.method(config, teacher, stages.network(config.student, 0))
    kept = stages.teaching(teacher, method, config.training)
    assert isinstance(kept, KeptTeaching)
    batch = next(batches(dataset.train, config.training, seed=1, epoch=0))
    live = LiveTeaching(teacher.module, method)(batch)
    for term, tensors in kept(batch).items():
        for ours, theirs in zip(tensors, live[term], strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)


def test_teacher_from_a_checkpoint(trial: DistillTrialConfig, stages: Stages, tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    trained = stages.teacher(trial.teacher)
    save_file(trained.module.state_dict(), path)
    given = stages.teacher(trial.teacher.model_copy(update={"checkpoint": str(path)}))
    assert given.facts["accuracy"] == trained.facts["accuracy"]
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(given.module(images), trained.module(images))
    other = TeacherConfig(network=resnet(5), checkpoint=str(path))
    with pytest.raises(CheckpointError, match=r"stem\.0\.weight has shape 6×1×3×3, expected 5×1×3×3"):
        stages.check(changed(trial, teacher=other))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": MethodConfig(ft=FTOptions(layers=("stage9",)))}, "has no layer 'stage9'"),
        ({"method": MethodConfig(name="at", at=ATOptions(layers=("stage3:linear",)))}, "expected feature maps"),
        ({"paraphraser": ParaphraserConfig(rate=0.01)}, "leaves no channel of the teacher's 24"),
        ({"student": ClassifierConfig(family="target")}, "has no layer 'stage3'; it has stem, block, head"),
    ],
)
def test_faults_are_found_before_anything_is_trained(
    fields: dict[str, object], message: str, trial: DistillTrialConfig, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Stages(Cache(tmp_path), dataset).student(changed(trial, **fields))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_any_teacher_and_student_with_maps_of_other_channels_and_size(dataset: Dataset) -> None:
    teacher = nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.Conv2d(10, 7, 3), nn.Flatten(), nn.Linear(7 * 24**2, 10))
    student = nn.Sequential(nn.Conv2d(1, 3, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 6**2, 10))
    teacher.eval().requires_grad_(False)
    config = MethodConfig(name="ft+kd", ft=FTOptions(layers=("2:0",)))
    shapes = [feature_shapes(teacher, ["2"], (1, 28, 28)), feature_shapes(student, ["0"], (1, 28, 28))]
    assert shapes == [{"2": (7, 24, 24)}, {"0": (3, 6, 6)}]
    method = build_method(config, *shapes, {"2": Paraphraser(7, 0.5)}, seed=0)
    fit = FitConfig(epochs=1, crop=2, learning_rate=0.01)
    training = StudentTraining(student, method, LiveTeaching(teacher, method), fit, dataset)
    metrics = training.run_epoch()
    assert metrics.keys() >= {"ft", "kd", "accuracy"}
    assert method.targets(run_with_features(teacher, torch.rand(2, 1, 28, 28), ["2"]))["ft"][0].shape == (2, 4 * 6 * 6)
