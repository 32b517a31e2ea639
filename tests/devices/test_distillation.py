"""Teachers, paraphrasers and students are trained on a device as on the CPU, with caches of either."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kt_ray.config import (
    ClassifierConfig,
    DatasetConfig,
    DistillTrialConfig,
    FitConfig,
    MethodConfig,
    ParaphraserConfig,
    ResNetOptions,
    TeacherConfig,
)
from kt_ray.data import Dataset, load_dataset
from kt_ray.distillation import stages
from kt_ray.distillation.cache import Cache
from kt_ray.distillation.distill import distill
from kt_ray.distillation.fitting import read_checkpoint
from kt_ray.distillation.stages import Stages
from tests.devices.pretended import PlacementError, pretended_cuda

METHODS = ("none", "kd", "at", "ft", "ft+kd")
FIT = FitConfig(epochs=2, batch_size=64, learning_rate=0.05, crop=0)


def trial(method: str, fit: FitConfig = FIT) -> DistillTrialConfig:
    def network(width: int) -> ClassifierConfig:
        return ClassifierConfig(resnet=ResNetOptions(depth=8, width=width, stem_stride=2))

    return DistillTrialConfig(
        teacher=TeacherConfig(network=network(4), training=FIT),
        paraphraser=ParaphraserConfig(training=FIT),
        student=network(2),
        training=fit,
        method=MethodConfig(name=method),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def small() -> Dataset:
    return load_dataset(DatasetConfig(name="mnist5k", train_images=128, selection_images=64))


@pytest.mark.parametrize("method", METHODS)
def test_a_student_is_that_of_the_cpu(method: str, small: Dataset, tmp_path: Path) -> None:
    expected = distill(trial(method), Stages(Cache(tmp_path / "cache"), small), tmp_path / "cpu")
    with pretended_cuda():
        found = distill(trial(method), Stages(Cache(tmp_path / "other cache"), small, "cuda"), tmp_path / "cuda")
    torch.testing.assert_close(read_checkpoint(found.student)[0], read_checkpoint(expected.student)[0])
    assert [(row.name, row.multiply_adds) for row in found.rows] == [
        (row.name, row.multiply_adds) for row in expected.rows
    ]


@pytest.mark.parametrize("crop", [0, 2], ids=["kept answers", "live answers"])
def test_waits_do_not_grow_with_steps(crop: int, small: Dataset, tmp_path: Path) -> None:
    waits = []
    for batch_size in (64, 16):
        fit = FIT.model_copy(update={"batch_size": batch_size, "crop": crop})
        with pretended_cuda() as device:
            training = Stages(Cache(tmp_path), small, "cuda").student(trial("ft+kd", fit))
            before = device.waits
            training.run_epoch()
            waits.append(device.waits - before)
    assert waits[0] == waits[1]


@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_checkpoint_and_a_cache_serve_another_device(first: str, second: str, small: Dataset, tmp_path: Path) -> None:
    expected = Stages(Cache(tmp_path / "whole"), small).student(trial("ft+kd"))
    losses = [expected.run_epoch()["loss"] for _ in range(2)]
    with pretended_cuda():
        training = Stages(Cache(tmp_path), small, first).student(trial("ft+kd"))
        assert training.run_epoch()["loss"] == pytest.approx(losses[0], rel=1e-4)
        training.save(tmp_path / "epoch.safetensors")
        resumed = Stages(Cache(tmp_path), small, second).student(trial("ft+kd"))
        resumed.load(tmp_path / "epoch.safetensors")
        assert resumed.run_epoch()["loss"] == pytest.approx(losses[1], rel=1e-4)


def test_answers_left_on_the_host_are_found(small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "from_state", lambda state, device: tuple(state.values()))
    with pretended_cuda():
        training = Stages(Cache(tmp_path), small, "cuda").student(trial("kd"))
        with pytest.raises(PlacementError):
            training.run_epoch()
