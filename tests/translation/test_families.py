"""What every family of translators must do, and the symmetries that some promise."""

from __future__ import annotations

import itertools

import pytest
import torch

from kt_ray.config import (
    AxialTransformerOptions,
    GraphOptions,
    MemberCounts,
    MixerOptions,
    MLPOptions,
    NetworkConfig,
    NeuronTransformerOptions,
    TranslatorConfig,
)
from kt_ray.errors import CheckpointError
from kt_ray.networks import PAIRS, Architecture, PaperArchitecture, stacked
from kt_ray.translation import augmentations
from kt_ray.translation.bases import one_shot_block
from kt_ray.translation.families import FAMILIES
from kt_ray.translation.translator import Translator, build_translator
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.untrained import untrained_zoo

WIDER = PaperArchitecture("basic_to_simple", NetworkConfig(channels=5, source_hidden=8, target_hidden=4))


def small(family: str, **fields: object) -> TranslatorConfig:
    """A quick translator of `family`."""
    return TranslatorConfig(
        family=family,
        mixer=MixerOptions(size="tiny"),
        mlp=MLPOptions(width=16, depth=1),
        neuron_transformer=NeuronTransformerOptions(width=16, depth=1),
        axial_transformer=AxialTransformerOptions(width=16, depth=1),
        graph=GraphOptions(width=16, depth=1),
        **fields,
    )


def build(config: TranslatorConfig, architecture: Architecture | None = None) -> Translator:
    torch.manual_seed(0)
    return build_translator(config, architecture or PaperArchitecture("basic_to_simple"))


@pytest.mark.parametrize(
    ("output", "batch_norm"), list(itertools.product(["direct", "residual"], ["dropped", "folded"]))
)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("family", FAMILIES)
def test_writes_whole_target_blocks(random_zoo: Zoo, family: str, pair: str, output: str, batch_norm: str) -> None:
    architecture = PaperArchitecture(pair)
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
    architecture = PaperArchitecture("basic_to_simple", network)
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
    ("family", "output"),
    [(family, "residual") for family in FAMILIES]
    + [("neuron_transformer", "direct"), ("axial_transformer", "direct"), ("graph", "direct")],
)
def test_order_of_the_sources_units_does_not_matter(random_zoo: Zoo, family: str, output: str) -> None:
    translator = build(small(family, output=output)).eval()
    permuted = augmentations.permute_hidden(
        random_zoo.parameters, torch.stack([torch.randperm(6) for _ in range(13)]), PaperArchitecture("basic_to_simple")
    )
    expected, actual = translator(random_zoo.part("source")), translator(stacked.part(permuted, "source"))
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=1e-5, rtol=1e-4)


def test_paper_mixer_has_the_papers_size() -> None:
    translator = build(TranslatorConfig(family="mixer", batch_norm="dropped", output="direct"))
    embed, token_map, write = 9 * 128 + 128, 72 * 256 + 256 + 256 * 36 + 36, 128 * 9 + 9
    token_mlp, channel_mlp = 72 * 256 + 256 + 256 * 72 + 72, 128 * 512 + 512 + 512 * 128 + 128
    expected = embed + 24 * (2 * 256 + token_mlp + channel_mlp) + 256 + token_map + write
    assert sum(parameter.numel() for parameter in translator.parameters()) == expected == 4_096_621


@pytest.mark.parametrize(("statistics", "context"), [(True, "block"), (False, "network"), (True, "network")])
@pytest.mark.parametrize("family", FAMILIES)
def test_features_reach_the_output(random_zoo: Zoo, family: str, statistics: bool, context: str) -> None:
    translator = build(small(family, statistics=statistics, context=context, batch_norm="dropped")).eval()
    read = translator.read(random_zoo.parameters)
    changed = dict(read)
    if statistics:
        changed["bn1.bias"] = read["bn1.bias"] + 1
    else:
        changed["stem.conv.weight"] = read["stem.conv.weight"] + 1
    assert not torch.allclose(translator(read)["conv2.weight"], translator(changed)["conv2.weight"])


def test_a_translator_that_reads_the_network_says_so(random_zoo: Zoo) -> None:
    translator = build(small("mixer", context="network"))
    assert translator.needs_network
    with pytest.raises(ValueError, match=r"give stem.… and head.… beside the block"):
        translator(random_zoo.part("source"))


@pytest.mark.parametrize("family", ["axial_transformer", "graph"])
def test_equivariant_families_follow_the_channels(random_zoo: Zoo, family: str) -> None:
    translator = build(small(family, statistics=True, context="network")).eval()
    permutation = torch.stack([torch.randperm(6) for _ in range(13)])
    moved = augmentations.permute_channels(random_zoo.parameters, permutation, PaperArchitecture("basic_to_simple"))
    expected = translator(translator.read(random_zoo.parameters))
    expected = augmentations.permute_channels(
        stacked.join(target=expected), permutation, PaperArchitecture("basic_to_simple")
    )
    for name, value in translator(translator.read(moved)).items():
        torch.testing.assert_close(value, expected[f"target.{name}"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("refinement", [0, 2])
@pytest.mark.parametrize("family", ["axial_transformer", "graph"])
def test_equivariant_families_serve_widths_they_were_not_built_for(family: str, refinement: int) -> None:
    """A translator for 6 channels and 6 to 3 units serves 5 channels and 8 to 4 with the same weights."""
    translator = build(small(family, refinement={"steps": refinement, "probes": 2, "width": 8})).eval()
    before = torch.get_rng_state()
    wider = translator.for_architecture(WIDER)
    assert torch.equal(before, torch.get_rng_state())
    assert not wider.training
    zoo = untrained_zoo(WIDER, MemberCounts(train=2, selection=1, test=1))
    blocks = wider(wider.read(zoo.parameters))
    expected = WIDER.target_block().state_dict()
    assert {name: value.shape[1:] for name, value in blocks.items()} == {k: v.shape for k, v in expected.items()}
    for name, value in translator.state_dict().items():
        assert torch.equal(wider.state_dict()[name], value)
    assert translator.for_architecture(PaperArchitecture("basic_to_simple")) is translator


@pytest.mark.parametrize(
    ("family", "other", "expected"),
    [
        (
            "mixer",
            WIDER,
            r"is for networks of channels=6 source_hidden=6 .* on images \(1, 28, 28\), not of channels=5 "
            r"source_hidden=8 .*: its body\.layers\.0\.\S+ depends on them; train one",
        ),
        ("axial_transformer", PaperArchitecture("basic_to_mlp"), "is for basic_to_simple, not for basic_to_mlp"),
        (
            "axial_transformer",
            PaperArchitecture("basic_to_simple", image_shape=(1, 32, 32)),
            r"on images \(1, 32, 32\): its refiner.probes depends on them",
        ),
    ],
)
def test_other_networks_are_refused_where_parameters_depend_on_them(
    family: str, other: Architecture, expected: str
) -> None:
    translator = build(small(family, refinement={"steps": 2, "probes": 2, "width": 8}))
    with pytest.raises(CheckpointError, match=expected) as error:
        translator.for_architecture(other)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_depends_on_the_heads_width(family: str) -> None:
    translator = build(small(family)).eval()
    other = translator.for_architecture(PaperArchitecture("basic_to_simple", NetworkConfig(head_channels=7)))
    assert other.architecture.network.head_channels == 7


@pytest.mark.parametrize("family", FAMILIES)
def test_canonical_form_removes_relu_scales(random_zoo: Zoo, family: str) -> None:
    translator = build(small(family, canonical=True, output="direct")).eval()
    scale = torch.exp(torch.randn(13, 6, generator=torch.Generator().manual_seed(0)))
    scaled = augmentations.rescale_hidden(random_zoo.parameters, scale, PaperArchitecture("basic_to_simple"))
    expected, actual = translator(random_zoo.part("source")), translator(stacked.part(scaled, "source"))
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=1e-4, rtol=1e-3)
