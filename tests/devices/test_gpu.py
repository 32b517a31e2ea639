"""Translators and students on a real CUDA device are those of the CPU within rounding: `make test-gpu`."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from kt_ray.data import Dataset
from kt_ray.distillation.cache import Cache
from kt_ray.distillation.stages import Stages
from kt_ray.translation.training import TranslatorTraining
from kt_ray.zoo.members import Zoo
from tests.devices.test_distillation import METHODS, trial
from tests.devices.test_evaluation import on_cpu, refined_translator
from tests.devices.test_translator_training import CASES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("name", CASES)
def test_an_epoch_of_a_translator(name: str, dataset: Dataset) -> None:
    """Dropout and augmentations draw from the device's generator, so losses are of one size and not equal."""
    case = CASES[name]
    losses = [
        TranslatorTraining(case.config(), case.zoo(), dataset, device).run_epoch()["loss"] for device in ("cpu", "cuda")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.5)


@pytest.mark.parametrize("trained", [False, True])
def test_replayed_steps_refine_as_the_cpu(random_zoo: Zoo, dataset: Dataset, trained: bool) -> None:
    translator = refined_translator(random_zoo, dataset, steps=24, sets=3, trained=trained)
    held_out = random_zoo.where("test")
    with torch.no_grad():
        expected = translator(translator.read(held_out.parameters))
        ours = copy.deepcopy(translator).to("cuda")
        found = ours(ours.read(held_out.to("cuda").parameters))
    torch.testing.assert_close(on_cpu(found), expected, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_an_epoch_of_a_student(method: str, dataset: Dataset, tmp_path: Path) -> None:
    losses = [
        Stages(Cache(tmp_path / device), dataset, device).student(trial(method)).run_epoch()["loss"]
        for device in ("cpu", "cuda")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
