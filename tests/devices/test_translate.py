"""Networks are translated on a device as on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kt_ray.config import ResNetOptions
from kt_ray.data import Dataset
from kt_ray.networks.checkpoint import read_state
from kt_ray.networks.resnet import CifarResNet
from kt_ray.networks.state_file import write_state
from kt_ray.translation import projected
from kt_ray.translation.checkpoint import save_translator
from kt_ray.translation.probe_images import shapes
from kt_ray.translation.translate import translate
from kt_ray.translation.translate_network import translate_network
from kt_ray.translation.whole_network import Fitting
from kt_ray.zoo.members import Zoo
from tests.devices.pretended import pretended_cuda
from tests.devices.test_evaluation import translator_of
from tests.devices.test_translator_training import CASES

NAMES = ("mixer", "network as context", "refined on a mixture from three starts", "projected, from all choices")


@pytest.fixture(params=[True, False], ids=["float64", "no float64"])
def float64(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the device has float64, which Apple's (`mps`) have not."""
    if not request.param:
        monkeypatch.setattr(projected, "WITHOUT_FLOAT64", {"cuda"})
    return bool(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_that_of_the_cpu(
    name: str, random_zoo: Zoo, dataset: Dataset, float64: bool, tmp_path: Path
) -> None:
    model, network = tmp_path / "translator.safetensors", tmp_path / "network.safetensors"
    config = CASES[name].config().translator
    save_translator(model, translator_of(name, dataset), config, random_zoo.architecture, {})
    write_state(network, {key: value[0] for key, value in random_zoo.network().items()}, {})
    expected = translate(model, network, tmp_path / "cpu.safetensors", dataset)
    with pretended_cuda() as device:
        device.float64 = float64
        found = translate(model, network, tmp_path / "cuda.safetensors", dataset, device="cuda")
    states = [read_state(tmp_path / f"{device}.safetensors") for device in ("cuda", "cpu")]
    torch.testing.assert_close(*states, atol=1e-6, rtol=1e-5)
    assert (found.accuracy_before, found.parameters_after) == (expected.accuracy_before, expected.parameters_after)


def test_a_whole_network_is_that_of_the_cpu_and_steps_do_not_wait(float64: bool, tmp_path: Path) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return CifarResNet(ResNetOptions(depth=8, width=4), 3, 4)

    checkpoint, waits = tmp_path / "resnet8.safetensors", []
    write_state(checkpoint, network().state_dict())
    probes = shapes(24, (3, 16, 16), torch.Generator().manual_seed(0))
    for steps in (2, 4):
        fitting = Fitting(images=16, steps=steps, batch=4)
        translate_network(network(), checkpoint, tmp_path / "cpu.safetensors", probes, fitting=fitting)
        with pretended_cuda() as device:
            device.float64 = float64
            output = tmp_path / "cuda.safetensors"
            translate_network(network(), checkpoint, output, probes, fitting=fitting, device="cuda")
            waits.append(device.waits)
        states = [read_state(tmp_path / f"{device}.safetensors") for device in ("cuda", "cpu")]
        torch.testing.assert_close(*states, atol=1e-5, rtol=1e-4)
    assert waits[0] == waits[1]
