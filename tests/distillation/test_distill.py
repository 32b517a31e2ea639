"""From a configuration to a student's file and a table; run again, nothing is trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kt_ray.config import ClassifierConfig, DistillTrialConfig, FTOptions, MethodConfig, TeacherConfig
from kt_ray.data import Dataset
from kt_ray.distillation.cache import Cache, fingerprint
from kt_ray.distillation.distill import conclude, distill, load_student
from kt_ray.distillation.fitting import save_checkpoint
from kt_ray.distillation.stages import Progress, Stages
from kt_ray.distillation.training import accuracy
from kt_ray.errors import CheckpointError, ConfigError


def test_a_student_by_factor_transfer(
    trial: DistillTrialConfig, dataset: Dataset, reports: list[Progress], tmp_path: Path
) -> None:
    made = distill(trial, Stages(Cache(tmp_path / "cache"), dataset, report=reports.append), tmp_path / "out")
    assert [row.name for row in made.rows] == ["teacher", "student"]
    teacher, student = made.rows
    assert (student.parameters, student.images_seen) == (4934, 1024)
    assert teacher.parameters > 2 * student.parameters
    assert student.seconds > 0
    assert made.paraphrasers["stage3"]["images_seen"] == 3 * 512
    assert {entry.stage for entry in reports} == {"teacher", "paraphraser of stage3", "student"}

    loaded = load_student(made.student)
    assert loaded.config == trial
    assert accuracy(loaded.network, dataset.test) == student.accuracy
    assert accuracy(loaded.network, dataset.selection) == made.selection_accuracy

    reports.clear()
    assert distill(trial, Stages(Cache(tmp_path / "cache"), dataset, report=reports.append), tmp_path / "out") == made
    assert reports == []
    assert json.loads(json.dumps(made.to_dict()))["rows"][1]["accuracy"] == student.accuracy
    assert f"| student | {student.accuracy:.4f} | 4,934 |" in made.to_markdown()


def test_the_selection_accuracy_is_on_the_images_at_hand(
    trial: DistillTrialConfig, dataset: Dataset, tmp_path: Path
) -> None:
    """A search may go on with other images than a student was trained with."""
    config = trial.model_copy(update={"method": MethodConfig(name="none")})
    made = distill(config, Stages(Cache(tmp_path / "cache"), dataset), tmp_path)
    student = load_student(made.student)
    few, none = (replace(dataset, selection=dataset.selection.take(slice(count))) for count in (50, 0))
    expected = accuracy(student.network, few.selection)
    assert expected != made.selection_accuracy
    for images, selected in ((few, expected), (none, None)):
        concluded = conclude(Stages(Cache(tmp_path), images), config, student.network, student.facts, made.student)
        assert concluded.selection_accuracy == selected


def test_without_a_teacher_there_is_one_row(trial: DistillTrialConfig, dataset: Dataset, tmp_path: Path) -> None:
    config = trial.model_copy(update={"method": MethodConfig(name="none")})
    reports: list[Progress] = []
    made = distill(config, Stages(Cache(tmp_path), dataset, report=reports.append), tmp_path / "out")
    assert [row.name for row in made.rows] == ["student"]
    assert [entry.stage for entry in reports] == ["student", "student"]
    # What the method does not read decides nothing.
    other = config.model_copy(update={"teacher": TeacherConfig(seed=5)})
    distill(other, Stages(Cache(tmp_path), dataset, report=reports.append), tmp_path / "out")
    assert len(reports) == 2


def test_this_projects_pair_by_factor_transfer(trial: DistillTrialConfig, dataset: Dataset, tmp_path: Path) -> None:
    config = trial.model_copy(
        update={
            "teacher": TeacherConfig(network=ClassifierConfig(family="source"), training=trial.training),
            "student": ClassifierConfig(family="target"),
            "method": MethodConfig(ft=FTOptions(layers=("block",))),
        }
    )
    made = distill(config, Stages(Cache(tmp_path), dataset), tmp_path / "out")
    assert [row.parameters for row in made.rows] == [6724, 6376]
    assert set(load_student(made.student).network.state_dict()) >= {"block.conv1.weight", "block.conv2.weight"}


def test_faults_come_before_training(trial: DistillTrialConfig, dataset: Dataset, tmp_path: Path) -> None:
    config = trial.model_copy(update={"method": MethodConfig(ft=FTOptions(layers=("stage4",)))})
    with pytest.raises(ConfigError, match="the student has no layer 'stage4'"):
        distill(config, Stages(Cache(tmp_path / "cache"), dataset), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_student(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_checkpoint(path, {"student": {"a": torch.zeros(1)}}, {"epoch": 1})
    with pytest.raises(CheckpointError, match=r"is not a student of `kt-ray distill`: 'config'"):
        load_student(path)


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    key = fingerprint("a")
    assert key != fingerprint("b")
    made = {"weight": torch.ones(2)}, {"accuracy": 0.5}
    for path in (tmp_path / f"{key}.safetensors", tmp_path / f"{key}.partial.safetensors"):
        path.write_bytes(b"damaged")
    partials = []
    state, facts = Cache(tmp_path).get(key, lambda partial: (partials.append(partial.exists()), made)[1])
    assert (state["weight"].tolist(), facts, partials) == ([1.0, 1.0], {"accuracy": 0.5}, [False])
    assert Cache(tmp_path).get(key, lambda partial: ({}, {}))[1] == facts
