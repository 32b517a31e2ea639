from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kt_ray.config import MemberCounts, PhaseConfig, RecipeConfig
from kt_ray.data import Dataset, as_float
from kt_ray.networks import Architecture
from kt_ray.zoo.members import Member, members_of
from kt_ray.zoo.stacking import Implementation, fresh
from kt_ray.zoo.training import Order, learning_rates, seed_of, train_members

ARCHITECTURE = Architecture("basic_to_simple")
PHASE = PhaseConfig(epochs=2, batch_size=64)
RECIPE = RecipeConfig(source=PHASE, target=PHASE, snapshots=(1,))
MEMBERS = members_of(0, MemberCounts(train=2, selection=1, test=1))
TOLERANCE = 1e-3  # of parameters after 16 steps: rounding, amplified by training


def test_same_build_twice_gives_the_same_bits(dataset: Dataset) -> None:
    first, first_rows = train_members(MEMBERS[:2], RECIPE, ARCHITECTURE, dataset)
    again, again_rows = train_members(MEMBERS[:2], RECIPE, ARCHITECTURE, dataset)
    assert all(torch.equal(first[name], again[name]) for name in first if not name.startswith("target."))
    assert all(torch.equal(first[name][1::2], again[name][1::2]) for name in first)
    assert first_rows.drop_columns("target_accuracy").equals(again_rows.drop_columns("target_accuracy"))


@pytest.mark.parametrize("implementation", ["loop", "vmap", "grouped"])
def test_batch_mates_and_implementation_change_rounding_only(dataset: Dataset, implementation: Implementation) -> None:
    alone, _ = train_members(MEMBERS[2:3], RECIPE, ARCHITECTURE, dataset, implementation="loop")
    beside, rows = train_members(MEMBERS[:3], RECIPE, ARCHITECTURE, dataset, implementation=implementation)
    assert rows["id"].to_pylist()[4:] == [MEMBERS[2].id] * 2
    for name in alone:
        torch.testing.assert_close(beside[name][4:], alone[name], atol=TOLERANCE, rtol=0, equal_nan=True)


def test_rows_tell_member_epoch_and_target(dataset: Dataset) -> None:
    parameters, rows = train_members(MEMBERS[:1], RECIPE, ARCHITECTURE, dataset)
    assert rows["epoch"].to_pylist() == [1, 2]
    assert rows["has_target"].to_pylist() == [False, True]
    assert parameters["target.conv1.weight"].isnan().flatten(1).all(1).tolist() == [True, False]
    assert math.isnan(rows["target_accuracy"][0].as_py())
    assert rows["source_accuracy"][1].as_py() > 0.15  # chance is 0.10


def test_equals_a_plain_loop_over_one_network(dataset: Dataset) -> None:
    """The reference: nn.Module, SGD, one network; same initialisation, batches and flips."""
    member, phase = MEMBERS[0], PhaseConfig(epochs=1, batch_size=128)
    recipe = RecipeConfig(source=phase, target=phase)
    trained, _ = train_members([member], recipe, ARCHITECTURE, dataset)

    network, block = ARCHITECTURE.source_network(), ARCHITECTURE.target_block()
    _load(network, fresh(ARCHITECTURE.source_network, [seed_of(member, "source")]))
    _load(block, fresh(ARCHITECTURE.target_block, [seed_of(member, "target")]))
    _plain_epoch(network.train(), network, seed_of(member, "source order"), dataset)
    network.eval().requires_grad_(False)
    _plain_epoch(nn.Sequential(network.stem, block, network.head), block, seed_of(member, "target order"), dataset)

    expected = {name.replace("block.", "source."): value for name, value in network.state_dict().items()}
    expected |= {f"target.{name}": value for name, value in block.state_dict().items()}
    for name, value in trained.items():
        torch.testing.assert_close(value[0], expected[name], atol=1e-4, rtol=0)


def _load(module: nn.Module, stack: dict[str, torch.Tensor]) -> None:
    module.load_state_dict({name: value[0] for name, value in stack.items()}, strict=False)


def _plain_epoch(network: nn.Module, trained: nn.Module, seed: int, dataset: Dataset) -> None:
    optimizer = torch.optim.SGD(trained.parameters(), 0.01, 0.9)
    rows, flips = Order(seed, len(dataset.train), True).epoch()
    for chosen, flipped in zip(rows.split(128), flips.split(128), strict=True):
        x = as_float(dataset.train.images[chosen])
        x[flipped] = x[flipped].flip(-1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), dataset.train.labels[chosen]).backward()
        optimizer.step()


@pytest.mark.parametrize("pair", ["basic_to_biased", "basic_to_mlp", "basic_to_attention"])
def test_every_pair_trains(dataset: Dataset, pair: str) -> None:
    phase = PhaseConfig(epochs=1, batch_size=256)
    recipe = RecipeConfig(source=phase, target=phase, horizontal_flip=False)
    parameters, _ = train_members(MEMBERS[:2], recipe, Architecture(pair), dataset)  # type: ignore[arg-type]
    assert all(value.isfinite().all() for value in parameters.values())


def test_members_differ_and_purposes_have_their_own_seeds() -> None:
    seeds = {seed_of(member, purpose) for member in MEMBERS for purpose in ("source", "target", "source order")}
    assert len(seeds) == 3 * len(MEMBERS)
    assert seed_of(Member.of(1, "train", 0), "source") != seed_of(Member.of(0, "train", 0), "source")


def test_schedules_start_and_end_where_they_should() -> None:
    for schedule, first, last in [("constant", 0.01, 0.01), ("cosine", 0.01, 0.0), ("one_cycle", 0.0005, 0.0)]:
        rates = list(learning_rates(PhaseConfig(schedule=schedule), 100))
        assert rates[0] == pytest.approx(first)
        assert rates[-1] == pytest.approx(last, abs=2e-4)
        assert max(rates) == pytest.approx(0.01)
