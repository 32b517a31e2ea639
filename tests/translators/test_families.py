"""What every family of translators must do, and the symmetries that some promise."""

from __future__ import annotations

import itertools

import pytest
import torch

from kt_ray import augmentations
from kt_ray.config import MixerOptions, NetworkConfig, NeuronTransformerOptions, TranslatorConfig
from kt_ray.networks import PAIRS, Architecture, stacked
from kt_ray.translators import FAMILIES, Translator, build_translator
from kt_ray.translators.one_shot import one_shot_block
from kt_ray.zoo.members import Zoo


def small(family: str, **fields: object) -> TranslatorConfig:
    """A quick translator of `family`."""
    return TranslatorConfig(
        family=family,
        mixer=MixerOptions(size="tiny"),
        neuron_transformer=NeuronTransformerOptions(width=16, depth=1),
        **fields,
    )


def build(config: TranslatorConfig, architecture: Architecture | None = None) -> Translator:
    torch.manual_seed(0)
    return build_translator(config, architecture or Architecture("basic_to_simple"))


@pytest.mark.parametrize(
    ("output", "batch_norm"), list(itertools.product(["direct", "residual"], ["dropped", "folded"]))
)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("family", FAMILIES)
def test_writes_whole_target_blocks(random_zoo: Zoo, family: str, pair: str, output: str, batch_norm: str) -> None:
    architecture = Architecture(pair)
    translator = build(small(family, output=output, batch_norm=batch_norm), architecture)
    blocks = translator(random_zoo.part("source"))
    expected = {
        name: (len(random_zoo), *value.shape) for name, value in architecture.target_block().state_dict().items()
    }
    assert {name: tuple(value.shape) for name, value in blocks.items()} == expected
    sum(value.square().sum() for value in blocks.values()).backward()
    assert all(parameter.grad is not None for parameter in translator.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_other_widths(family: str) -> None:
    network = NetworkConfig(channels=5, source_hidden=8, target_hidden=2)
    architecture = Architecture("basic_to_simple", network)
    source = stacked.stack([architecture.source_block().state_dict() for _ in range(2)])
    blocks = build(small(family), architecture)(source)
    assert blocks["conv1.weight"].shape == (2, 2, 5, 3, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_residual_with_no_scale_is_the_pruned_block(random_zoo: Zoo, family: str) -> None:
    translator = build(small(family)).eval()
    torch.nn.init.zeros_(translator.scale)
    blocks = translator(random_zoo.part("source"))
    for name, value in one_shot_block(random_zoo.part("source"), random_zoo.architecture).items():
        torch.testing.assert_close(blocks[name], value)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_do_not_depend_on_each_other(random_zoo: Zoo, family: str) -> None:
    translator = build(small(family)).eval()
    source = random_zoo.part("source")
    together = translator(source)
    alone = translator({name: value[2:3] for name, value in source.items()})
    for name, value in alone.items():
        torch.testing.assert_close(value, together[name][2:3], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "output"), [("neuron_transformer", "direct"), ("neuron_transformer", "residual"), ("mixer", "residual")]
)
def test_order_of_the_sources_units_does_not_matter(random_zoo: Zoo, family: str, output: str) -> None:
    translator = build(small(family, output=output)).eval()
    permuted = augmentations.permute_hidden(random_zoo.parameters, torch.stack([torch.randperm(6) for _ in range(13)]))
    expected, actual = translator(random_zoo.part("source")), translator(stacked.part(permuted, "source"))
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=1e-5, rtol=1e-4)


def test_paper_mixer_has_the_papers_size() -> None:
    translator = build(TranslatorConfig(family="mixer", batch_norm="dropped", output="direct"))
    embed, token_map, write = 9 * 128 + 128, 72 * 256 + 256 + 256 * 36 + 36, 128 * 9 + 9
    token_mlp, channel_mlp = 72 * 256 + 256 + 256 * 72 + 72, 128 * 512 + 512 + 512 * 128 + 128
    expected = embed + 24 * (2 * 256 + token_mlp + channel_mlp) + 256 + token_map + write
    assert sum(parameter.numel() for parameter in translator.parameters()) == expected == 4_096_621
