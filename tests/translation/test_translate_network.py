"""A checkpoint of a whole network becomes a file that a smaller network loads strictly, and the file that builds it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import resnet18

from kt_ray.config import ResNetOptions
from kt_ray.errors import CheckpointError
from kt_ray.networks.resnet import CifarResNet
from kt_ray.networks.state_file import write_state
from kt_ray.translation.narrowing import residual_blocks
from kt_ray.translation.probe_images import shapes
from kt_ray.translation.translate_network import translate_network
from kt_ray.translation.whole_network import Fitting

PROBES = shapes(24, (3, 16, 16), torch.Generator().manual_seed(0))
BRIEF = Fitting(images=16, steps=1, batch=4)


def network() -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(ResNetOptions(depth=8, width=4), 3, 4)


def test_a_network_is_halved_and_loads_strictly(tmp_path: Path) -> None:
    checkpoint, output = tmp_path / "resnet8.pth", tmp_path / "small.safetensors"
    state = network().state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, checkpoint)
    report = translate_network(network(), checkpoint, output, PROBES, fitting=BRIEF)
    assert [(site.path, site.hidden_before, site.hidden_after) for site in report.sites] == [
        ("stage1.0", 4, 2),
        ("stage2.0", 8, 4),
        ("stage3.0", 16, 8),
    ]
    assert report.multiply_adds_after < 0.7 * report.multiply_adds_before
    small = runpy.run_path(report.builder)["narrow"](network())
    small.load_state_dict(load_file(output))
    assert small.eval()(PROBES).isfinite().all()


def test_all_units_kept_give_the_same_network(tmp_path: Path) -> None:
    checkpoint, output = tmp_path / "resnet8.safetensors", tmp_path / "same.safetensors"
    write_state(checkpoint, network().state_dict())
    fitting = Fitting(images=24, ridge=1e-7, steps=0)
    report = translate_network(network(), checkpoint, output, PROBES, share=1.0, fitting=fitting)
    small = runpy.run_path(report.builder)["narrow"](network())
    small.load_state_dict(load_file(output))
    torch.testing.assert_close(small.eval()(PROBES), network().eval()(PROBES), atol=1e-2, rtol=1e-2)


def test_the_blocks_of_torchvisions_resnets_are_found() -> None:
    paths = residual_blocks(resnet18())
    assert list(paths) == [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]


@pytest.mark.parametrize(
    ("output", "share"), [("small.pth", 0.5), ("resnet8.safetensors", 0.5), ("small.safetensors", 0.0)]
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, output: str, share: float) -> None:
    checkpoint = tmp_path / "resnet8.safetensors"
    write_state(checkpoint, network().state_dict())
    with pytest.raises(CheckpointError):
        translate_network(network(), checkpoint, tmp_path / output, PROBES, share, fitting=BRIEF)
    assert not (tmp_path / "small.safetensors").exists()


def test_images_that_the_network_does_not_take_are_refused(tmp_path: Path) -> None:
    write_state(tmp_path / "resnet8.safetensors", network().state_dict())
    with pytest.raises(CheckpointError, match="CifarResNet"):
        translate_network(
            network(), tmp_path / "resnet8.safetensors", tmp_path / "small.safetensors", PROBES[:, :1], fitting=BRIEF
        )
