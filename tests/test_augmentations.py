"""Symmetries change no prediction, whatever the draw; corruption does what its numbers say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kt_ray import augmentations
from kt_ray.config import AugmentationConfig, MemberCounts
from kt_ray.networks import PAIRS, Architecture, State, stacked
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.untrained import untrained_zoo

few = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**31)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(architecture: Architecture, members: State, block: str, x: torch.Tensor) -> torch.Tensor:
    network = architecture.source_network() if block == "source" else architecture.target_network()
    state = {name: value for name, value in members.items() if name.startswith(("stem.", "head."))}
    state |= {f"block.{name}": value for name, value in stacked.part(members, block).items()}
    return stacked.forward(network, state, x, shared=True)


@few
@given(seed=seeds, pair=st.sampled_from(sorted(PAIRS)))
def test_channel_permutation_changes_no_logit_of_source_or_target(seed: int, pair: str) -> None:
    zoo = untrained_zoo(Architecture(pair), MemberCounts(train=1, selection=1, test=1))
    config = AugmentationConfig(channel_permutation=True)
    moved = augmentations.augment(zoo.parameters, config, pair, generator(seed))
    x = torch.rand(4, 1, 28, 28, generator=generator(seed))
    for block in ("source", "target"):
        expected = logits(zoo.architecture, zoo.parameters, block, x)
        torch.testing.assert_close(logits(zoo.architecture, moved, block, x), expected, atol=1e-4, rtol=1e-4)


@few
@given(seed=seeds)
def test_channel_permutation_moves_the_activations(seed: int) -> None:
    zoo = untrained_zoo(Architecture("basic_to_simple"), MemberCounts(train=1, selection=1, test=1))
    permutation = torch.stack([torch.randperm(6, generator=generator(seed + row)) for row in range(3)])
    moved = augmentations.permute_channels(zoo.parameters, permutation, "basic_to_simple")
    x = torch.rand(4, 1, 28, 28, generator=generator(seed))
    stem = zoo.architecture.stem()
    before = stacked.forward(stem, zoo.part("stem"), x, shared=True)
    after = stacked.forward(stem, stacked.part(moved, "stem"), x, shared=True)
    for row in range(3):
        torch.testing.assert_close(after[row], before[row][:, permutation[row]])


@few
@given(seed=seeds)
def test_hidden_permutation_changes_no_output_of_the_source(random_zoo: Zoo, seed: int) -> None:
    config = AugmentationConfig(hidden_permutation=True)
    moved = augmentations.augment(random_zoo.parameters, config, "basic_to_simple", generator(seed))
    x = torch.randn(2, 6, 14, 14, generator=generator(seed))
    block = random_zoo.architecture.source_block()
    expected = stacked.forward(block, random_zoo.part("source"), x, shared=True)
    actual = stacked.forward(block, stacked.part(moved, "source"), x, shared=True)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(moved["source.conv1.weight"], random_zoo.parameters["source.conv1.weight"])
    assert torch.equal(moved["target.conv1.weight"], random_zoo.parameters["target.conv1.weight"])


def test_mask_zeroes_the_share_asked_for_and_leaves_vectors_alone(random_zoo: Zoo) -> None:
    source = random_zoo.part("source")
    masked = augmentations.mask(source, 0.3, generator(0))
    zeros = torch.cat([(masked[f"conv{i}.weight"] == 0).flatten() for i in (1, 2)]).float().mean()
    assert float(zeros) == pytest.approx(0.3, abs=0.03)
    kept = masked["conv1.weight"] != 0
    assert torch.equal(masked["conv1.weight"][kept], source["conv1.weight"][kept])
    assert torch.equal(masked["bn1.bias"], source["bn1.bias"])


@pytest.mark.parametrize("relative", [False, True])
def test_noise_has_the_deviation_asked_for(random_zoo: Zoo, relative: bool) -> None:
    source = {name: 10 * value for name, value in random_zoo.part("source").items()}
    noisy = augmentations.noise(source, 0.1, generator(0), relative=relative)
    difference = noisy["conv1.weight"] - source["conv1.weight"]
    unit = float(source["conv1.weight"].std()) if relative else 1.0
    assert float(difference.std()) == pytest.approx(0.1 * unit, rel=0.05)
    assert torch.equal(noisy["bn1.running_var"], source["bn1.running_var"])


@pytest.mark.parametrize(
    ("sides", "changed"), [("source", {"source"}), ("target", {"target"}), ("both", {"source", "target"})]
)
@pytest.mark.parametrize("kind", ["mask", "noise"])
def test_corruption_reaches_the_side_asked_for(random_zoo: Zoo, kind: str, sides: str, changed: set[str]) -> None:
    strength = {"probability": 0.5} if kind == "mask" else {"std": 0.5}
    config = AugmentationConfig(**{kind: strength | {"sides": sides}})
    source, target = augmentations.corrupt(random_zoo.parameters, config, generator(0))
    before = {"source": random_zoo.part("source"), "target": random_zoo.part("target")}
    after = {"source": source, "target": target}
    assert {
        side for side in before if not torch.equal(before[side]["conv1.weight"], after[side]["conv1.weight"])
    } == changed


def test_nothing_asked_nothing_done(random_zoo: Zoo) -> None:
    config = AugmentationConfig()
    assert (
        augmentations.augment(random_zoo.parameters, config, "basic_to_simple", generator(0)) is random_zoo.parameters
    )
    source, target = augmentations.corrupt(random_zoo.parameters, config, generator(0))
    assert all(torch.equal(value, random_zoo.parameters[f"source.{name}"]) for name, value in source.items())
    assert all(torch.equal(value, random_zoo.parameters[f"target.{name}"]) for name, value in target.items())
