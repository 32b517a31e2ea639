"""Shapes and parameter counts of the paper's networks, worked out by hand."""

import pytest
import torch

from kt_ray.config import NetworkConfig
from kt_ray.networks import PAIRS, READ_STRIDE, PaperArchitecture
from kt_ray.networks.cost import multiply_adds, parameter_count


def test_the_papers_blocks_have_its_parameter_counts() -> None:
    architecture = PaperArchitecture("basic_to_simple")
    source, target = architecture.source_block(), architecture.target_block()
    convolutions = {name: p.numel() for name, p in source.named_parameters() if name.startswith("conv")}
    assert convolutions == {"conv1.weight": 6 * 6 * 9, "conv2.weight": 6 * 6 * 9}
    assert sum(convolutions.values()) == 648
    assert parameter_count(source) == 648 + 2 * (6 + 6)  # BN scale and shift
    assert {name: tuple(p.shape) for name, p in target.named_parameters()} == {
        "conv1.weight": (3, 6, 3, 3),
        "conv2.weight": (6, 3, 3, 3),
    }
    assert parameter_count(target) == 324


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("basic_to_simple", 324),
        ("basic_to_biased", 324 + 3 + 6),
        ("basic_to_mlp", 6 * 12 + 12 + 12 * 6 + 6),
        ("basic_to_attention", 4 * 36),
    ],
)
def test_target_blocks_keep_the_shape_of_their_input(pair: str, expected: int) -> None:
    architecture = PaperArchitecture(pair)  # type: ignore[arg-type]
    target = architecture.target_block()
    x = torch.rand(2, *architecture.activation_shape)
    assert target(x).shape == x.shape == architecture.source_block()(x).shape
    assert parameter_count(target) == expected


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("kind", ["source_block", "target_block"])
def test_strided_blocks_give_what_the_head_reads(pair: str, kind: str) -> None:
    architecture = PaperArchitecture(pair, image_shape=(1, 30, 28))  # type: ignore[arg-type]
    whole, strided = getattr(architecture, kind)().eval(), getattr(architecture, kind)(READ_STRIDE).eval()
    strided.load_state_dict(whole.state_dict())
    head, rest = architecture.head().eval(), architecture.head(stride=1).eval()
    rest.load_state_dict(head.state_dict())
    x = torch.rand(2, *architecture.activation_shape)
    torch.testing.assert_close(rest(strided(x)), head(whole(x)))


def test_stem_and_head_are_the_papers() -> None:
    architecture = PaperArchitecture("basic_to_simple")
    assert architecture.activation_shape == (6, 14, 14)
    assert architecture.stem()(torch.rand(2, 1, 28, 28)).shape == (2, 6, 14, 14)
    assert architecture.head().linear.weight.shape == (10, 588)
    assert architecture.source_network()(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_multiply_adds_of_the_source_network() -> None:
    network = PaperArchitecture("basic_to_simple").source_network()
    stem, block, head = 28 * 28 * 9 * 6, 2 * 14 * 14 * 9 * 36, 7 * 7 * 6 * 12 + 588 * 10
    assert multiply_adds(network, (1, 28, 28)) == stem + block + head


def test_attention_is_softmax_attention_over_positions() -> None:
    block = PaperArchitecture("basic_to_attention", NetworkConfig(channels=2)).target_block()
    x = torch.randn(1, 2, 3, 3)
    query, key, value = (getattr(block, name)(x).flatten(2).transpose(1, 2) for name in ("query", "key", "value"))
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    expected = block.projection(attended.transpose(1, 2).reshape(x.shape)) + x
    torch.testing.assert_close(block(x), expected)


def test_other_widths_and_images() -> None:
    wide = NetworkConfig(channels=8, source_hidden=10, target_hidden=4, head_channels=5)
    network = PaperArchitecture("basic_to_simple", wide, image_shape=(3, 30, 30), classes=7).target_network()
    assert network(torch.rand(2, 3, 30, 30)).shape == (2, 7)
