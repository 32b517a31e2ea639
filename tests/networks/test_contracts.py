"""Networks and pairs of people: what they must offer, and what is said if they do not."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kt_ray.errors import ConfigError
from kt_ray.networks.contracts import find_sites, layout_widths, make_network, make_pair
from kt_ray.networks.layouts import BlockLayout, HiddenLayer, Layer
from kt_ray.networks.resnet import ResidualBlock


def test_every_residual_block_is_halved_and_its_projection_copied() -> None:
    sites = find_sites(make_network("resnet", {"depth": 8, "width": 4}), make_pair("halved"))

    assert [site.path for site in sites] == ["layer1.0", "layer2.0", "layer3.0"]
    assert [layout_widths(site.target_layout, site.target) for site in sites] == [(2,), (4,), (8,)]
    assert [site.layout.copied for site in sites] == [(), ("downsample",), ("downsample",)]
    assert sites[1].input_shape == (4, 32, 32)


@pytest.mark.parametrize("name", ["basic_to_simple", "basic_to_biased", "basic_to_mlp", "basic_to_attention"])
def test_the_papers_pairs_keep_to_the_contract(name: str) -> None:
    (site,) = find_sites(make_network("paper"), make_pair(name))
    assert site.input_shape == (6, 14, 14)


def test_layers_are_folded_with_the_eps_of_their_norm() -> None:
    block = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, eps=0.5)).eval()
    nn.init.normal_(block[1].running_mean)
    kernel, bias = Layer.of(block, "0", "1").folded(block.state_dict())
    x = torch.rand(2, 3, 5, 5)
    assert torch.allclose(nn.functional.conv2d(x, kernel, bias, padding=1), block(x), atol=1e-5)


class PreActivated(ResidualBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))


def _raises(source: nn.Module) -> nn.Module:
    raise RuntimeError("my own fault")


@pytest.mark.parametrize(
    ("target", "layout", "path"),
    [
        (lambda source: nn.Conv2d(4, 5, 3, padding=1), None, "shape"),
        (_raises, None, "my own fault"),
        (lambda source: "block", None, "str"),
        (
            lambda source: source,
            BlockLayout((HiddenLayer((Layer("conv1.weight"),), (Layer("conv2.weight"),)),)),
            "bn1.bias",
        ),
        (lambda source: source, BlockLayout(flat=("conv9.weight",)), "conv9"),
    ],
)
def test_faults_of_pairs_are_one_line(
    target: Callable[[nn.Module], nn.Module], layout: BlockLayout | None, path: str
) -> None:
    pair = SimpleNamespace(target=target, layout=lambda source: layout, target_layout=lambda target: None)
    with pytest.raises(ConfigError, match=path) as raised:
        find_sites(make_network("resnet", {"depth": 8, "width": 4}), pair)
    assert "\n" not in str(raised.value)
    assert "layer1.0" in str(raised.value)


def test_faults_of_networks_are_one_line() -> None:
    resnet = make_network("resnet", {"depth": 8, "width": 4})
    with pytest.raises(ConfigError, match="layer7"):
        find_sites(resnet, make_pair("halved"), ("layer7",))
    with pytest.raises(ConfigError, match="classes"):
        make_network("resnet", {"classes": 7}, classes=10)
    with pytest.raises(ConfigError, match="image_shape"):
        make_network("resnet", {"image_shape": (1, 28, 28)}, image_shape=(3, 32, 32))
    with pytest.raises(ConfigError, match="resnet"):
        make_network("resnets")
    with pytest.raises(ConfigError, match=r"options\.depth"):
        make_network("resnet", {"depth": 9})


def test_a_block_that_computes_something_else_is_not_halved() -> None:
    with pytest.raises(ConfigError, match="PreActivated"):
        make_pair("halved").target(PreActivated(4, 4))
