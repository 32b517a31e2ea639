"""Projected blocks come near to their sources without a step, for every pair."""

from __future__ import annotations

import pytest
import torch

from kt_ray import networks
from kt_ray.config import MemberCounts, NetworkConfig, TranslatorConfig
from kt_ray.networks import PAIRS, PaperArchitecture
from kt_ray.translation.bases import one_shot_block
from kt_ray.translation.block_runner import stem_activations, surround
from kt_ray.translation.divergences import relative_error
from kt_ray.translation.probe_images import strokes, to_images
from kt_ray.translation.projector import projected_block, projections
from kt_ray.translation.translator import Translator, build_translator
from kt_ray.translation.transplants import readable
from kt_ray.translation.units import read
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.untrained import untrained_zoo

COUNTS = MemberCounts(train=2, selection=1, test=1)
WIDE = NetworkConfig(channels=5, source_hidden=12, target_hidden=5)
NO_IMAGES = torch.empty(0, 1, 28, 28, dtype=torch.uint8)


def drawn(count: int, seed: int) -> torch.Tensor:
    return strokes(count, (1, 28, 28), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("network", [NetworkConfig(), WIDE])
@pytest.mark.parametrize("pair", PAIRS)
def test_projected_blocks_are_nearer_than_pruned_ones(pair: str, network: NetworkConfig) -> None:
    """On images that are not the probes, for every pair; wide blocks by elimination."""
    zoo = untrained_zoo(PaperArchitecture(pair, network), COUNTS)
    members = readable(zoo)
    surroundings = surround(members, stem_activations(members, drawn(16, 1), zoo.architecture), zoo.architecture)
    block = projected_block(members, zoo.architecture, drawn(16, 0))
    expected = {name: value.shape for name, value in zoo.architecture.target_block().state_dict().items()}
    assert {name: value.shape[1:] for name, value in block.items()} == expected

    def errors(block: networks.State) -> torch.Tensor:
        return relative_error(surroundings.outputs(block), surroundings.wanted)

    assert (errors(block) < errors(one_shot_block(zoo.part("source"), zoo.architecture))).all()


def test_further_blocks_are_of_other_units(random_zoo: Zoo) -> None:
    members = readable(random_zoo)
    surroundings = surround(
        members, stem_activations(members, drawn(8, 0), random_zoo.architecture), random_zoo.architecture
    )
    found = projections(members, surroundings, random_zoo.architecture, count=3)
    choices = torch.stack([projected.chosen for projected in found], dim=1)
    assert choices.shape == (13, 3, 3)
    assert all(len({tuple(row) for row in member}) == 3 for member in choices.tolist())


def translator(zoo: Zoo, **options: object) -> Translator:
    torch.manual_seed(0)
    settings = {"family": "axial_transformer", "base": "projected", "projection": {"probes": 8, "images": "strokes"}}
    built = build_translator(TranslatorConfig(**settings | options), zoo.architecture)
    built.draw_probes(NO_IMAGES, torch.Generator().manual_seed(0))
    return built


def test_a_translator_writes_over_the_projected_block(random_zoo: Zoo) -> None:
    built = translator(random_zoo).eval()
    torch.nn.init.zeros_(built.scale)
    assert built.needs_network
    assert "projector.probes" in built.state_dict()
    members = built.read(random_zoo.parameters)
    images = to_images(built.projector.probes)
    for name, value in projected_block(members, random_zoo.architecture, images).items():
        torch.testing.assert_close(built(members)[name], value)


def test_the_family_reads_the_chosen_units_first(random_zoo: Zoo) -> None:
    built, seen = translator(random_zoo).eval(), []
    built.body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    members = built.read(random_zoo.parameters)
    built(members)
    projected = built.projector(members, built.projector.surroundings(members))[0]
    chosen, base = projected.chosen, projected.units.edges
    plain = read(members, random_zoo.architecture, "folded")
    torch.testing.assert_close(seen[0].edges[:, :3], torch.cat([plain.take(chosen).edges, base], dim=3))
    assert not seen[0].edges[:, 3:, :, 2:].any()
    torch.testing.assert_close(seen[0].edges[:, :, :, :2].sum(1), plain.edges.sum(1))


@pytest.mark.parametrize("learned", [True, False])
def test_probes_are_parameters_if_they_are_learned(random_zoo: Zoo, learned: bool) -> None:
    options = {"probes": 6, "images": "strokes", "learned": learned}
    built = translator(random_zoo, projection=options)
    block = built.train()(built.read(random_zoo.parameters))
    sum(value.square().sum() for value in block.values()).backward()
    assert (built.projector.probes.grad is not None) is learned
    assert ("projector.probes" in dict(built.named_parameters())) is learned


def test_refinement_begins_at_several_choices(random_zoo: Zoo) -> None:
    built = translator(random_zoo, refinement={"steps": 8, "probes": 4, "starts": 3, "trained": False, "width": 8})
    members = built.eval().read(random_zoo.parameters)
    assert all(value.isfinite().all() for value in built(members).values())
