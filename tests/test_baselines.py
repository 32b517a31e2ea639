"""Each baseline is what its name says."""

from __future__ import annotations

import pytest
import torch

from kt_ray import baselines
from kt_ray.networks import PAIRS, Architecture, stacked
from kt_ray.zoo.members import Zoo


@pytest.mark.parametrize("pair", PAIRS)
def test_zero_block_passes_its_input(pair: str) -> None:
    architecture = Architecture(pair)
    x = torch.rand(2, 3, 6, 14, 14)  # activations after the stem's ReLU are never negative
    block = baselines.zero_block(architecture, 2)
    torch.testing.assert_close(stacked.forward(architecture.target_block(), block, x), x)


def test_random_targets_differ_by_member_and_follow_the_seed() -> None:
    architecture = Architecture("basic_to_simple")
    blocks = baselines.random_target(architecture, 2, seed=4)
    assert not torch.equal(blocks["conv1.weight"][0], blocks["conv1.weight"][1])
    again = baselines.random_target(architecture, 2, seed=4)
    assert torch.equal(blocks["conv1.weight"], again["conv1.weight"])


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
