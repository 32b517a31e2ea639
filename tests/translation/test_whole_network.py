"""Blocks of whole networks are written in forward order, on what the narrower network before them produces."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from kt_ray.config import ResNetOptions
from kt_ray.errors import CheckpointError, ConfigError
from kt_ray.networks.layouts import BlockLayout, HiddenLayer
from kt_ray.networks.resnet import CifarResNet
from kt_ray.translation import block_steps, muon
from kt_ray.translation.block_steps import Steps, take_steps
from kt_ray.translation.muon import Affine
from kt_ray.translation.narrowing import narrowed, residual_blocks
from kt_ray.translation.observed_blocks import preactivation, run_blocks
from kt_ray.translation.whole_network import (
    LEAST_SQUARES,
    Fitting,
    translate_blocks,
    usual_steps,
    write_block,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def warmed(network: nn.Module, *shape: int) -> nn.Module:
    """Return `network` with statistics and scales in its BN as training leaves them."""
    with torch.no_grad():
        for seed in range(3):
            network.train()(random(16, *shape, seed=seed))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(0.5 + random(len(module.weight)).abs())
                module.bias.copy_(0.3 * random(len(module.weight), seed=1))
    return network.eval()


class Projection(nn.Module):
    """A block of torchvision's kind: a projection shortcut, a convolution with bias, an eps of its own."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, hidden, 3, 2, padding=1)
        self.bn1 = nn.BatchNorm2d(hidden, eps=1e-3)
        self.conv2 = nn.Conv2d(hidden, outputs, 5, padding=2, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(branch + self.downsample(x))


@pytest.fixture
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return warmed(CifarResNet(ResNetOptions(depth=8, width=4), 1, 3), 1, 12, 12)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_units_that_give_nothing_are_left_out_and_the_network_is_unchanged(resnet: nn.Module, share: float) -> None:
    """Half of the hidden units are cut off: half of the width is enough, at every site and for the whole network."""
    images = random(64, 1, 12, 12, seed=5)
    with torch.no_grad():
        for path in residual_blocks(resnet):
            resnet.get_submodule(path).conv2.weight[:, ::2] = 0.0
    small, sites = narrowed(resnet, share)
    fitting = Fitting(ridge=1e-9, steps=0)
    report = translate_blocks(resnet, small, sites, images, fitting)
    torch.testing.assert_close(small(images), resnet(images), atol=2e-3, rtol=2e-3)
    assert report.agreement == 1.0
    assert tuple(site.path for site in report.sites) == residual_blocks(resnet)


def test_a_block_of_another_kind_is_written_from_its_modules_alone() -> None:
    torch.manual_seed(1)
    block = warmed(Projection(3, 6, 8), 3, 12, 12)
    inputs = torch.relu(random(32, 3, 12, 12))
    expected = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(inputs))))) + block.downsample(inputs)
    small, (site,) = narrowed(nn.ModuleDict({"only": block}), share=1.0)
    wanted = preactivation(block, site.source.layers()[-1], inputs)
    torch.testing.assert_close(wanted, expected, atol=1e-4, rtol=1e-4)
    assert write_block(block, small["only"], site, inputs, wanted, ridge=1e-9) < 1e-6
    torch.testing.assert_close(small["only"](inputs), torch.relu(expected), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("fault", ["dead", "collinear"])
def test_dead_and_collinear_units_leave_the_fit_finite(resnet: nn.Module, fault: str) -> None:
    images = random(32, 1, 12, 12, seed=5)
    with torch.no_grad():
        for path in residual_blocks(resnet):
            block = resnet.get_submodule(path)
            if fault == "dead":
                block.bn1.bias[1:] = -1e3
            else:
                block.conv1.weight[1:] = block.conv1.weight[:1]
                block.bn1.load_state_dict(
                    {
                        name: part[:1].expand_as(part) if part.dim() else part
                        for name, part in block.bn1.state_dict().items()
                    }
                )
    small, sites = narrowed(resnet, 0.5)
    translate_blocks(resnet, small, sites, images, LEAST_SQUARES)
    torch.testing.assert_close(small(images), resnet(images), atol=0.05, rtol=0.05)


@torch.no_grad()
def test_later_blocks_make_up_for_errors_of_earlier_ones(resnet: nn.Module) -> None:
    """The outputs of the last block are nearer than with every block fitted to the original's own inputs."""
    images = random(128, 1, 12, 12, seed=5)
    (in_order, sites), (apart, _) = narrowed(resnet, 0.25), narrowed(resnet, 0.25)
    translate_blocks(resnet, in_order, sites, images, LEAST_SQUARES)
    given = run_blocks(resnet, [site.path for site in sites], images)
    for site in sites:
        block, inputs = resnet.get_submodule(site.path), given.inputs[site.path]
        wanted = preactivation(block, site.source.layers()[-1], inputs)
        write_block(block, apart.get_submodule(site.path), site, inputs, wanted, LEAST_SQUARES.ridge)
    last = sites[-1].path
    missed = [
        float((run_blocks(small, [last], images).outputs[last] - given.outputs[last]).square().mean())
        for small in (in_order, apart)
    ]
    assert missed[0] < missed[1]


@torch.no_grad()
def test_steps_bring_the_network_nearer_to_the_original(resnet: nn.Module) -> None:
    probes, fresh = random(256, 1, 12, 12, seed=5), random(64, 1, 12, 12, seed=6)
    errors = []
    for fitting in (LEAST_SQUARES, Fitting(steps=30)):
        small, sites = narrowed(resnet, 0.5)
        translate_blocks(resnet, small, sites, probes, fitting)
        errors.append(float((small(fresh) - resnet(fresh)).square().mean()))
    assert errors[1] < errors[0]


def test_the_original_is_not_changed_and_the_result_is_repeated(resnet: nn.Module) -> None:
    probes, before = random(64, 1, 12, 12, seed=5), copy.deepcopy(resnet.state_dict())
    states = []
    for _ in range(2):
        small, sites = narrowed(resnet, 0.5)
        translate_blocks(resnet, small, sites, probes, Fitting(steps=2))
        states.append(small.state_dict())
    for name, value in resnet.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=0)


def test_blocks_that_are_not_served_are_named(resnet: nn.Module) -> None:
    resnet.stage1[0].conv2 = nn.Conv2d(4, 4, 3, padding=(1, 2))
    with pytest.raises(ConfigError, match="conv2"):
        narrowed(resnet, 0.5, ["stage1.0"])
    with pytest.raises(ConfigError, match="conv1"):
        narrowed(resnet, 0.5, ["stem"])
    with pytest.raises(CheckpointError, match="Sequential"):
        residual_blocks(nn.Sequential(nn.Linear(2, 2)))


def test_a_convolution_that_changes_the_size_of_maps_is_refused(resnet: nn.Module) -> None:
    small, (site, *_) = narrowed(resnet, 0.5)
    first, last = site.source.layers()
    strided = BlockLayout((HiddenLayer((first,), (replace(last, stride=2),)),))
    with pytest.raises(CheckpointError, match=r"stage1\.0\.conv2"):
        translate_blocks(resnet, small, [replace(site, source=strided)], random(4, 1, 12, 12))


@torch.no_grad()
def test_steps_in_bfloat16_come_to_what_those_in_float32_do(resnet: nn.Module) -> None:
    probes, fresh = random(256, 1, 12, 12, seed=5), random(64, 1, 12, 12, seed=6)
    outputs = []
    for fitting in (LEAST_SQUARES, Fitting(steps=30), Fitting(steps=30, bfloat16=True)):
        small, sites = narrowed(resnet, 0.5)
        translate_blocks(resnet, small, sites, probes, fitting)
        assert all(value.dtype == torch.float32 for value in small.parameters())
        outputs.append(small(fresh))
    least_squares, float32, bfloat16 = outputs
    assert not torch.equal(bfloat16, float32)
    assert (bfloat16 - float32).norm() < 0.1 * (least_squares - float32).norm()


def test_a_network_that_is_cheap_to_run_gets_more_steps_and_narrower_blocks_do() -> None:
    assert usual_steps(0.5, 10**9) == usual_steps(0.5, 10**7) == Fitting.steps
    assert usual_steps(0.25, 10**7) == round(1.5 * Fitting.steps)
    assert usual_steps(0.5, 3 * 10**6) == 2 * Fitting.steps
    assert usual_steps(0.5, 1) == round(2.5 * Fitting.steps)


@torch.no_grad()
def test_predictions_weigh_more_at_the_end(resnet: nn.Module) -> None:
    """With all weight on predictions, these come nearer to the original's, and the blocks' outputs less near."""
    probes = random(256, 1, 12, 12, seed=5)
    paths, wanted = residual_blocks(resnet), run_blocks(resnet, residual_blocks(resnet), probes)
    missed = []
    for divergence in ((0.01, 0.01), (0.01, 100.0)):
        small, sites = narrowed(resnet, 0.25)
        translate_blocks(resnet, small, sites, probes, Fitting(steps=40, divergence=divergence))
        given = run_blocks(small, paths, probes)
        predictions = (given.logits.softmax(1) - wanted.logits.softmax(1)).square().mean()
        blocks = sum((given.outputs[path] - wanted.outputs[path]).square().mean() for path in paths)
        missed.append((float(predictions), float(blocks)))
    assert missed[1][0] < missed[0][0]
    assert missed[1][1] > missed[0][1]


@torch.no_grad()
def test_steps_without_room_to_keep_the_originals_outputs_come_to_the_same(
    resnet: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes, states = random(64, 1, 12, 12, seed=5), []
    for room in (block_steps.REMEMBERED, 0):
        monkeypatch.setattr(block_steps, "REMEMBERED", room)
        small, sites = narrowed(resnet, 0.5)
        translate_blocks(resnet, small, sites, probes, Fitting(steps=3, batch=16))
        states.append(small.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], atol=1e-4, rtol=1e-3)


def test_blocks_errors_are_in_the_gradient_as_if_they_were_in_the_loss(
    resnet: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of all is that of each block's mean squared error over the variance of what is wanted."""
    probes, found = random(8, 1, 12, 12, seed=5), list[Tensor]()
    small, sites = narrowed(resnet, 0.5)
    translate_blocks(resnet, small, sites, probes, LEAST_SQUARES)
    blocks = {site.path: site.target for site in sites}

    def descend(layers: Sequence[Affine], loss: Callable[[Tensor, float], Tensor], count: int, _: Steps) -> None:
        with torch.enable_grad():
            found.extend(torch.autograd.grad(loss(torch.arange(count), 1.0), [layer.weight for layer in layers]))

    monkeypatch.setattr(muon, "descend", descend)
    take_steps(resnet, small, blocks, probes, Steps(steps=1, batch=8, divergence=(1.0, 2.0)))
    wanted, given = (run_blocks(network, list(blocks), probes) for network in (resnet, small))
    missed = [
        (given.outputs[path] - wanted.outputs[path]).square().mean()
        / wanted.outputs[path].var((0, 2, 3), correction=0).mean()
        for path in blocks
    ]
    divergence = kl_div(
        given.logits.log_softmax(1), wanted.logits.log_softmax(1).detach(), log_target=True, reduction="batchmean"
    )
    weights = [
        small.get_submodule(path).get_submodule(layer.path).weight
        for path, layout in blocks.items()
        for layer in layout.layers()
    ]
    expected = torch.autograd.grad(torch.stack(missed).mean() + 2 * divergence, weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
