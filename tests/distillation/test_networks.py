"""CIFAR ResNets of the published sizes, and features taken from them by name."""

from __future__ import annotations

import pytest
import torch

from kt_ray.config import ClassifierConfig, ResNetOptions
from kt_ray.distillation.features import common_size, feature_shapes, pooled, run_with_features
from kt_ray.distillation.networks import build_network
from kt_ray.errors import ConfigError
from kt_ray.networks.cost import parameter_count
from kt_ray.networks.resnet import CifarResNet


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154), (56, 853_018), (110, 1_727_962)])
def test_sizes_of_cifar_resnets(depth: int, parameters: int) -> None:
    assert parameter_count(CifarResNet(ResNetOptions(depth=depth), 3, 10)) == parameters


def test_a_narrow_one_by_hand() -> None:
    # Stem 9·4 + 8; stages 2·(9·4·4 + 8), 9·4·8 + 9·8·8 + 32 and 9·8·16 + 9·16·16 + 64; linear 16·10 + 10.
    expected = 44 + 304 + (288 + 576 + 32) + (1152 + 2304 + 64) + 170
    assert parameter_count(CifarResNet(ResNetOptions(depth=8, width=4), 1, 10)) == expected == 4934


def test_blocks_with_half_of_the_hidden_units_keep_their_outputs() -> None:
    # As above with 2, 4 and 8 hidden units.
    expected = 44 + (9 * 4 * 2 * 2 + 12) + (9 * 4 * 4 + 9 * 4 * 8 + 24) + (9 * 8 * 8 + 9 * 8 * 16 + 48) + 170
    halved = CifarResNet(ResNetOptions(depth=8, width=4, hidden=0.5), 1, 10)
    assert parameter_count(halved) == expected
    assert feature_shapes(halved, ["stage3.0.conv1", "stage3"], (1, 28, 28))["stage3"] == (16, 7, 7)


def test_shapes_of_the_stages() -> None:
    network = CifarResNet(ResNetOptions(depth=8, width=4, stem_stride=2), 1, 10)
    layers = ["stem", "stage1", "stage2", "stage3", "stage3.0.conv1"]
    assert feature_shapes(network, layers, (1, 28, 28)) == {
        "stem": (4, 14, 14),
        "stage1": (4, 14, 14),
        "stage2": (8, 7, 7),
        "stage3": (16, 4, 4),
        "stage3.0.conv1": (16, 4, 4),
    }


def test_features_do_not_change_the_logits_and_leave_no_hook() -> None:
    network = CifarResNet(ResNetOptions(depth=8, width=4), 1, 10).eval()
    images = torch.rand(2, 1, 28, 28)
    outputs = run_with_features(network, images, ["stage3"])
    assert torch.equal(outputs.logits, network(images))
    assert torch.equal(network.linear(outputs.features["stage3"].mean((-2, -1))), outputs.logits)
    assert not any(module._forward_hooks for module in network.modules())


def test_this_projects_network_is_a_teacher_or_student_too() -> None:
    for family in ("source", "target"):
        network = build_network(ClassifierConfig.model_validate({"family": family}), (1, 28, 28), 10, seed=0)
        assert feature_shapes(network, ["block"], (1, 28, 28)) == {"block": (6, 14, 14)}


def test_the_start_depends_on_the_seed_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        return build_network(ClassifierConfig(resnet=ResNetOptions(depth=8)), (3, 32, 32), 10, seed).linear.weight

    torch.rand(3)
    first = weights(1)
    torch.rand(5)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


def test_an_unknown_layer_names_those_there_are() -> None:
    network = CifarResNet(ResNetOptions(depth=8), 1, 10)
    with pytest.raises(
        ConfigError, match=r"^the teacher has no layer .xyz.; it has stem, stage1, stage2, stage3, linear$"
    ):
        feature_shapes(network, ["xyz"], (1, 28, 28), "teacher")
    with pytest.raises(ConfigError, match=r"no layer 'stage3\.0\.conv3'; it has stage3\.0\.conv\d, "):
        feature_shapes(network, ["stage3.0.conv3"], (1, 28, 28))


def test_a_layer_without_maps_cannot_be_matched() -> None:
    network = CifarResNet(ResNetOptions(depth=8), 1, 10)
    with pytest.raises(
        ConfigError, match=r"layer 'linear' of the network gives shape \(1, 10\), expected feature maps"
    ):
        feature_shapes(network, ["linear"], (1, 28, 28))


def test_pooling() -> None:
    assert common_size((8, 14, 14), (4, 7, 7)) == common_size((8, 7, 7), (4, 14, 14)) == (7, 7)
    maps = torch.arange(4.0).view(1, 1, 2, 2)
    assert pooled(maps, (2, 2)) is maps
    assert pooled(maps, (1, 1)).item() == 1.5


def test_a_depth_that_is_no_resnet() -> None:
    with pytest.raises(ValueError, match=r"6n \+ 2 with n of at least 1 \(8, 14, 20, 32, 56, 110\), got 18"):
        ResNetOptions(depth=18)
