"""Translators are trained, resumed and evaluated on a device as on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from kt_ray.config import DatasetConfig, MemberCounts, NetworkConfig, TrialConfig
from kt_ray.data import Dataset, load_dataset
from kt_ray.networks import PaperArchitecture
from kt_ray.translation.losses import best_order
from kt_ray.translation.training import TranslatorTraining
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.untrained import untrained_zoo
from tests.devices.pretended import DeviceMode, pretended_cuda
from tests.translation.everything import ALL_AUGMENTATIONS, ALL_LOSSES

FAMILIES: dict[str, dict[str, Any]] = {
    "mixer": {"size": "tiny"},
    "mlp": {"width": 16, "depth": 1},
    "neuron_transformer": {"width": 16, "depth": 1, "dropout": 0.1},
    "axial_transformer": {"width": 16, "depth": 1, "dropout": 0.1},
    "graph": {"width": 16, "depth": 1, "dropout": 0.1},
}
BEHAVIOUR = {"weight_mse": 0, "kl": 1, "images": 8}


@dataclass(frozen=True)
class Case:
    """A trial in miniature: a family, what its translator, loss and augmentation set, and the zoo's networks."""

    family: str
    translator: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=lambda: ALL_LOSSES)
    augmentation: dict[str, Any] = field(default_factory=lambda: ALL_AUGMENTATIONS)
    pair: str = "basic_to_simple"
    network: dict[str, Any] = field(default_factory=dict)

    def config(self, steps: int = 3) -> TrialConfig:
        training = {"epochs": 2, "steps_per_epoch": steps, "batch_size": 4, "clip_norm": 1.0, "ema": 0.9, "warmup": 0.1}
        return TrialConfig.model_validate(
            {
                "seed": 3,
                "translator": {"family": self.family, **FAMILIES, **self.translator},
                "loss": self.loss,
                "augmentation": self.augmentation,
                "training": training | {"patience": 5, "weight_decay": 0.01},
            }
        )

    def zoo(self) -> Zoo:
        architecture = PaperArchitecture(self.pair, NetworkConfig(**self.network))
        return untrained_zoo(architecture, MemberCounts(train=6, selection=2, test=2))


def refined(images: str, trained: bool, starts: int) -> Case:
    refinement = {"steps": 4, "images": images, "trained": trained, "predictions": 0.5, "starts": starts}
    refinement |= {"probes": 4, "probe_sets": 2, "width": 8, "heads": 2}
    return Case("mlp", {"refinement": refinement}, augmentation={"noise": {"std": 0.1, "sides": "source"}})


CASES = {
    **{family: Case(family) for family in FAMILIES},
    **{
        pair: Case("axial_transformer", pair=pair) for pair in ("basic_to_biased", "basic_to_mlp", "basic_to_attention")
    },
    "network as context": Case(
        "axial_transformer", {"statistics": True, "context": "network", "canonical": True, "base": "merged"}
    ),
    "projected, from all choices": Case("mlp", {"base": "projected"}, BEHAVIOUR, {}),
    "projected, by elimination": Case(
        "mlp", {"base": "projected"}, BEHAVIOUR, {}, network={"source_hidden": 12, "target_hidden": 6}
    ),
    "direct output, BN dropped": Case("neuron_transformer", {"batch_norm": "dropped", "output": "direct"}),
    "aligned by assignment": Case("mlp", network={"source_hidden": 8, "target_hidden": 7}),
    "varied": Case("mlp", loss=BEHAVIOUR, augmentation={"vary": 0.1}),
    "refined on strokes": refined("strokes", trained=False, starts=1),
    "refined on a mixture from three starts": refined("mixture", trained=False, starts=3),
    "learned steps": refined("mixture", trained=True, starts=1),
}


ASSIGNED = ("aligned by assignment", "basic_to_mlp")  # more than six units: an assignment is solved on the host


@pytest.fixture(scope="module")
def images() -> Dataset:
    return load_dataset(DatasetConfig(name="mnist5k", train_images=192, selection_images=64))


def waits_of_an_epoch(training: TranslatorTraining, device: DeviceMode) -> int:
    before = device.waits
    training.run_epoch()
    return device.waits - before


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_training_is_the_uninterrupted_one(name: str, images: Dataset, tmp_path: Path) -> None:
    case = CASES[name]
    config, zoo = case.config(), case.zoo()
    with pretended_cuda() as device:
        whole = TranslatorTraining(config, zoo, images, "cuda")
        assert {parameter.device.type for parameter in whole.translator.parameters()} == {"cuda"}
        whole.run_epoch()
        whole.save(tmp_path / "epoch.safetensors")
        expected_waits = waits_of_an_epoch(whole, device)
        resumed = TranslatorTraining(config, zoo, images, "cuda")
        resumed.load(tmp_path / "epoch.safetensors")
        waits = waits_of_an_epoch(resumed, device)
        expected = {key: value.cpu() for key, value in whole.translator.state_dict().items()}
        found = {key: value.cpu() for key, value in resumed.translator.state_dict().items()}
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert waits <= expected_waits


@pytest.mark.parametrize("name", [name for name in CASES if name not in ASSIGNED])
def test_waits_do_not_grow_with_steps(name: str, images: Dataset) -> None:
    """The steps of an epoch are given to the device without waiting for it."""
    case, waits = CASES[name], []
    for steps in (2, 6):
        with pretended_cuda() as device:
            training = TranslatorTraining(case.config(steps), case.zoo(), images, "cuda")
            training.run_epoch()
            waits.append(waits_of_an_epoch(training, device))
    assert waits[0] == waits[1]


@pytest.mark.parametrize(("units", "expected"), [(6, 0), (8, 2)])
def test_many_units_are_assigned_by_the_host_which_waits_once_a_call(units: int, expected: int) -> None:
    """The costs of the whole batch are copied to the host at once, the orders back at once."""
    cost = torch.rand(16, units, units, generator=torch.Generator().manual_seed(0))
    with pretended_cuda() as device:
        best_order(cost[:1].to("cuda"))  # all orders of few units are copied to the device once
        on_device, before = cost.to("cuda"), device.waits
        found = best_order(on_device)
        waits = device.waits - before
        torch.testing.assert_close(found.cpu(), best_order(cost))
    assert waits == expected


def test_a_checkpoint_goes_from_the_device_to_the_cpu(images: Dataset, tmp_path: Path) -> None:
    case = CASES["mlp"]
    with pretended_cuda():
        training = TranslatorTraining(case.config(), case.zoo(), images, "cuda")
        training.run_epoch()
        training.save(tmp_path / "epoch.safetensors")
    resumed = TranslatorTraining(case.config(), case.zoo(), images, "cpu")
    resumed.load(tmp_path / "epoch.safetensors")
    assert resumed.run_epoch()["loss"] > 0
