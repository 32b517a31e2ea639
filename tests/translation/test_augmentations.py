"""Symmetries change no prediction, whatever the draw; corruption does what its numbers say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kt_ray.config import AugmentationConfig, MemberCounts
from kt_ray.networks import PAIRS, Architecture, PaperArchitecture, State, stacked
from kt_ray.translation import augmentations
from kt_ray.translation.augmentations import Orientation
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.untrained import untrained_zoo

few = settings(max_examples=10, deadline=None)
ARCHITECTURE = PaperArchitecture("basic_to_simple")
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
    zoo = untrained_zoo(PaperArchitecture(pair), MemberCounts(train=1, selection=1, test=1))
    config = AugmentationConfig(channel_permutation=True)
    moved = augmentations.augment(zoo.parameters, config, PaperArchitecture(pair), generator(seed))
    x = torch.rand(4, 1, 28, 28, generator=generator(seed))
    for block in ("source", "target"):
        expected = logits(zoo.architecture, zoo.parameters, block, x)
        torch.testing.assert_close(logits(zoo.architecture, moved, block, x), expected, atol=1e-4, rtol=1e-4)


@few
@given(seed=seeds)
def test_channel_permutation_moves_the_activations(seed: int) -> None:
    zoo = untrained_zoo(PaperArchitecture("basic_to_simple"), MemberCounts(train=1, selection=1, test=1))
    permutation = torch.stack([torch.randperm(6, generator=generator(seed + row)) for row in range(3)])
    moved = augmentations.permute_channels(zoo.parameters, permutation, ARCHITECTURE)
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
    moved = augmentations.augment(random_zoo.parameters, config, ARCHITECTURE, generator(seed))
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
    assert augmentations.augment(random_zoo.parameters, config, ARCHITECTURE, generator(0)) is random_zoo.parameters
    source, target = augmentations.corrupt(random_zoo.parameters, config, generator(0))
    assert all(torch.equal(value, random_zoo.parameters[f"source.{name}"]) for name, value in source.items())
    assert all(torch.equal(value, random_zoo.parameters[f"target.{name}"]) for name, value in target.items())


@few
@given(seed=seeds)
def test_rescaling_changes_no_output_of_the_source(random_zoo: Zoo, seed: int) -> None:
    moved = augmentations.augment(random_zoo.parameters, AugmentationConfig(rescale=0.5), ARCHITECTURE, generator(seed))
    x = torch.randn(2, 6, 14, 14, generator=generator(seed))
    block = random_zoo.architecture.source_block()
    expected = stacked.forward(block, random_zoo.part("source"), x, shared=True)
    torch.testing.assert_close(
        stacked.forward(block, stacked.part(moved, "source"), x, shared=True), expected, atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(moved["source.bn1.weight"], random_zoo.parameters["source.bn1.weight"])


@few
@given(seed=seeds, rows=st.booleans(), columns=st.booleans(), transposed=st.booleans())
def test_a_turned_block_turns_activations(
    random_zoo: Zoo, seed: int, rows: bool, columns: bool, transposed: bool
) -> None:
    orientation = Orientation(rows, columns, transposed)
    x = torch.randn(2, 6, 14, 14, generator=generator(seed))
    block = random_zoo.architecture.source_block()

    def turn(maps: torch.Tensor) -> torch.Tensor:
        maps = maps.flip([axis for axis, flipped in ((-2, rows), (-1, columns)) if flipped])
        return maps.transpose(-1, -2) if transposed else maps

    expected = turn(stacked.forward(block, random_zoo.part("source"), x, shared=True))
    actual = stacked.forward(block, orientation.turn(random_zoo.part("source")), turn(x), shared=True)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    back = orientation.turn_back(orientation.turn(random_zoo.parameters))
    assert all(torch.equal(back[name], value) for name, value in random_zoo.parameters.items())


@few
@given(seed=seeds)
def test_swapped_units_move_whole_and_cost_the_target(random_zoo: Zoo, seed: int) -> None:
    """Every unit of the new source is, in all its parts, a unit of some member."""
    moved = augmentations.swap_units(random_zoo.parameters, 0.3, ARCHITECTURE, generator(seed))

    def units(members: State) -> torch.Tensor:
        source = stacked.part(members, "source")
        parts = [source["conv1.weight"].flatten(2), source["conv2.weight"].transpose(1, 2).flatten(2)]
        parts += [source[f"bn1.{name}"][..., None] for name in ("weight", "bias", "running_mean", "running_var")]
        return torch.cat(parts, dim=2)

    before, after = units(random_zoo.parameters), units(moved)
    same = (after.flatten(0, 1)[:, None] == before.flatten(0, 1)).all(2)  # [units after, units before]
    assert same.any(1).all()
    changed = (before != after).flatten(1).any(1)
    without_target = moved["target.conv1.weight"].isnan().flatten(1).any(1)
    assert not (changed & ~without_target).any()  # a unit swapped for itself costs the target, too


@few
@given(seed=seeds)
def test_mixup_of_equals_up_to_order_changes_nothing(random_zoo: Zoo, seed: int) -> None:
    """Members that are one member with its units in other orders mix to that member."""
    one = stacked.take(random_zoo.parameters, torch.zeros(4, dtype=torch.long))
    shuffled = augmentations.permute_hidden(
        one, torch.stack([torch.randperm(6, generator=generator(seed + i)) for i in range(4)]), ARCHITECTURE
    )
    mixed = augmentations.augment(shuffled, AugmentationConfig(mixup=0.5), ARCHITECTURE, generator(seed))
    for name, value in shuffled.items():
        torch.testing.assert_close(mixed[name], value, atol=1e-5, rtol=1e-4)


def test_mixup_takes_no_more_than_the_share_asked_for(random_zoo: Zoo) -> None:
    mixed = augmentations.augment(random_zoo.parameters, AugmentationConfig(mixup=0.1), ARCHITECTURE, generator(0))
    moved = (mixed["source.conv1.weight"] - random_zoo.parameters["source.conv1.weight"]).norm()
    assert 0 < float(moved) < 0.1 * 2 * float(random_zoo.parameters["source.conv1.weight"].norm())
    assert torch.equal(mixed["stem.conv.weight"], random_zoo.parameters["stem.conv.weight"])


def test_varied_blocks_have_no_target(random_zoo: Zoo) -> None:
    varied = augmentations.augment(random_zoo.parameters, AugmentationConfig(vary=0.1), ARCHITECTURE, generator(0))
    assert varied["target.conv1.weight"].isnan().all()
    assert not torch.equal(varied["source.conv1.weight"], random_zoo.parameters["source.conv1.weight"])


def test_kernel_mask_takes_whole_kernels(random_zoo: Zoo) -> None:
    masked = augmentations.mask(random_zoo.part("source"), 0.3, generator(0), kernels=True)["conv1.weight"]
    gone = (masked == 0).flatten(3)
    assert torch.equal(gone.any(-1), gone.all(-1))
    assert float(gone.float().mean()) == pytest.approx(0.3, abs=0.06)
