"""A network cut at a site: its parts together are the network, whatever it is."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from kt_ray.errors import ConfigError
from kt_ray.networks import stacked
from kt_ray.networks.contracts import Network, Normalised, built, cut, make_network
from kt_ray.networks.cut import Cut


def whole(network: Network) -> nn.Module:
    """Return a fresh module of `network`, with its own names, that takes images in [0, 1]."""
    return Cut.whole(built(network), Normalised(network))


class Forked(nn.Module):
    """Reads the first layer again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        logits: Tensor = self.last((self.block(x) + x).mean((-2, -1)))
        return logits


@given(
    width=st.integers(1, 4),
    kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    norm=st.booleans(),
    bias=st.booleans(),
    site=st.integers(0, 2),
)
@settings(max_examples=12, deadline=None)
def test_parts_of_any_network_are_the_network(
    width: int, kernel: int, stride: int, norm: bool, bias: bool, site: int
) -> None:
    blocks = [
        nn.Sequential(
            nn.Conv2d(2 if not number else width, width, kernel, stride, kernel // 2, bias=bias),
            nn.BatchNorm2d(width) if norm else nn.Identity(),
            nn.ReLU(inplace=True),
        )
        for number in range(3)
    ]
    network = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)).eval()
    images = torch.rand(3, 2, 12, 12)

    parts = Cut(network, str(site), (2, 12, 12))

    assert torch.allclose(parts.after(parts.block(parts.before(images))), network(images), atol=1e-5)
    block = [f"{parts.site}.{name}" for name in parts.block.state_dict()]
    names = {*parts.before.state_dict(), *parts.after.state_dict(), *block}
    assert names == network.state_dict().keys()


def test_stacks_and_copies_of_parts_are_run_with_given_tensors() -> None:
    resnet = make_network("resnet", {"depth": 8, "width": 4, "mean": (0.5,) * 3, "deviation": (0.25,) * 3})
    parts = cut(resnet, "layer2.0")
    networks = [whole(resnet).eval() for _ in range(2)]
    stack = stacked.stack(network.state_dict() for network in networks)
    images = torch.rand(5, 3, 32, 32)
    before, after = copy.deepcopy(parts.before), copy.deepcopy(parts.after)

    inputs = stacked.forward(before, Cut.part_of(stack, before), images, shared=True)
    outputs = stacked.forward(parts.block, parts.block_state(stack), inputs)
    logits = stacked.forward(after, Cut.part_of(stack, after), outputs)

    for network, row in zip(networks, logits, strict=True):
        assert torch.allclose(row, network(images), atol=1e-4)


def test_gradients_through_the_rest_are_those_of_the_whole_network() -> None:
    resnet = make_network("resnet", {"depth": 8, "width": 4})
    network = whole(resnet).eval()
    parts = cut(resnet, "layer2.0", network)
    images = torch.rand(4, 3, 32, 32)
    kernel = network.get_parameter("layer2.0.conv1.weight")
    (expected,) = torch.autograd.grad(network(images).square().sum(), kernel)
    state = {name: value.clone().requires_grad_() for name, value in parts.block.named_parameters()}

    outputs = functional_call(parts.block, state, (parts.before(images),))
    (found,) = torch.autograd.grad(parts.after(outputs).square().sum(), state["conv1.weight"])

    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ConfigError, match="block"):
        Cut(Forked(), "block", (1, 8, 8))
    with pytest.raises(ConfigError, match=r"layer9"):
        Cut(Forked(), "layer9", (1, 8, 8))
    with pytest.raises(ConfigError, match="3"):
        Cut(Forked(), "block", (3, 8, 8))
