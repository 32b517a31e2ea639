"""Each baseline is what its name says."""

from __future__ import annotations

import pytest
import torch

from kt_ray.data import Dataset, as_float
from kt_ray.networks import PAIRS, PaperArchitecture, State, stacked
from kt_ray.translation import baselines
from kt_ray.translation.bases import BASES
from kt_ray.translation.block_runner import stem_activations, surround
from kt_ray.translation.divergences import relative_error
from kt_ray.zoo.members import Zoo


@pytest.mark.parametrize("pair", PAIRS)
def test_zero_block_passes_its_input(pair: str) -> None:
    architecture = PaperArchitecture(pair)
    x = torch.rand(2, 3, 6, 14, 14)  # activations after the stem's ReLU are never negative
    block = baselines.zero_block(architecture, 2)
    torch.testing.assert_close(stacked.forward(architecture.target_block(), block, x), x)


def test_random_targets_differ_by_member_and_follow_the_seed() -> None:
    architecture = PaperArchitecture("basic_to_simple")
    blocks = baselines.random_target(architecture, 2, seed=4)
    assert not torch.equal(blocks["conv1.weight"][0], blocks["conv1.weight"][1])
    again = baselines.random_target(architecture, 2, seed=4)
    assert torch.equal(blocks["conv1.weight"], again["conv1.weight"])


@pytest.mark.parametrize("pair", PAIRS)
def test_one_shot_bases_give_another_block_each(random_zoo: Zoo, pair: str) -> None:
    architecture = PaperArchitecture(pair)
    blocks = {
        base: torch.cat([value.flatten() for value in made.values()])
        for base in BASES
        for made in [baselines.one_shot_block(random_zoo.part("source"), architecture, base=base)]
    }
    kept = baselines.one_shot_bases(architecture)
    for base, block in blocks.items():
        same = [name for name in kept if torch.equal(blocks[name], block)]
        assert same == ([base] if base in kept else ["pruned"])


def test_nearest_target_finds_the_member_itself(random_zoo: Zoo) -> None:
    train = random_zoo.where("train")
    asked = train.take(torch.tensor([5, 0, 3]))
    for name, value in baselines.nearest_target(train, asked).items():
        assert torch.equal(value, asked.part("target")[name])


def test_mean_target(random_zoo: Zoo) -> None:
    mean = baselines.mean_target(random_zoo.where("train"), 3)
    assert mean["conv1.weight"].shape == (3, 3, 6, 3, 3)
    torch.testing.assert_close(
        mean["conv1.weight"][1], random_zoo.where("train").part("target")["conv1.weight"].mean(0)
    )


@pytest.mark.parametrize("inputs", ["images", "strokes", "statistics"])
def test_fitting_comes_nearer_to_the_source(random_zoo: Zoo, dataset: Dataset, inputs: str) -> None:
    images = as_float(dataset.selection.images[:16])
    network = random_zoo.part("source") | stacked.surroundings(random_zoo.parameters)
    surroundings = surround(
        network, stem_activations(network, images, random_zoo.architecture), random_zoo.architecture
    )

    def error(block: State) -> float:
        logits = surroundings.logits(surroundings.features(surroundings.outputs(block)))
        return float(relative_error(logits, surroundings.wanted_logits).mean())

    pruned = baselines.one_shot_block(random_zoo.part("source"), random_zoo.architecture)
    block = baselines.fitted(random_zoo, 20, dataset.train if inputs == "images" else inputs)
    assert error(block) < 0.9 * error(pruned)


def test_synthetic_activations_have_the_stems_statistics(random_zoo: Zoo) -> None:
    """Before pooling and ReLU their deviation is BN's; after them they are never negative, and brighter where β is."""
    generator = torch.Generator().manual_seed(0)
    members = dict(random_zoo.parameters)
    members["stem.bn.bias"] = torch.tensor([3.0, 1.0, 0.0, -1.0, -3.0, -9.0]).expand(13, 6)
    activations = baselines.synthetic_activations(members, random_zoo.architecture, 8, generator)
    assert activations.shape == (13, 6, 14, 14, 8)
    assert float(activations.min()) == 0
    means = activations.mean((0, 2, 3, 4))
    assert torch.equal(means.argsort(descending=True), torch.arange(6))
