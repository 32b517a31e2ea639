from __future__ import annotations

import pytest
import torch

from kt_ray.config import MemberCounts, PhaseConfig, RecipeConfig, validate
from kt_ray.errors import ConfigError
from kt_ray.zoo.members import Member, members_of
from kt_ray.zoo.recipe import Order, counted_epoch, learning_rates, ranges_of, recipe_of, steps_of


def test_members_differ_and_purposes_have_their_own_seeds() -> None:
    members = members_of(0, MemberCounts(train=3, selection=1, test=1, brief=2))
    seeds = {member.seed_of(purpose) for member in members for purpose in ("source", "target", "source order")}
    assert len(seeds) == 3 * len(members)
    assert Member.of(1, "train", 0).seed_of("source") != Member.of(0, "train", 0).seed_of("source")
    assert {member.split for member in members if member.brief} == {"train"}


def test_splits_never_meet() -> None:
    members = members_of(0, MemberCounts(train=200, selection=50, test=50, brief=100))
    assert len({member.seed for member in members}) == len({member.id for member in members}) == 400


@pytest.mark.parametrize(("schedule", "first", "last"), [("constant", 1, 1), ("cosine", 1, 0), ("one_cycle", 0.05, 0)])
def test_schedules_start_and_end_where_they_should(schedule: str, first: float, last: float) -> None:
    shares = list(learning_rates(schedule, 100))
    assert shares[0] == pytest.approx(first)
    assert shares[-1] == pytest.approx(last, abs=0.02)
    assert max(shares) == pytest.approx(1)


def test_a_range_more_leaves_other_draws_alone() -> None:
    member = Member.of(0, "train", 3)
    one = RecipeConfig(source=PhaseConfig(learning_rate=(0.01, 0.1)))
    two = RecipeConfig(source=PhaseConfig(learning_rate=(0.01, 0.1), epochs=(3, 9)), shift=(0, 3))
    first, second = recipe_of(one, member)[1], recipe_of(two, member)[1]
    assert first.items() <= second.items()
    assert set(ranges_of(two)) == set(second) == {"source_learning_rate", "source_epochs", "shift"}
    assert 0.01 <= first["source_learning_rate"] <= 0.1


def test_orders_are_permutations_and_repeatable() -> None:
    recipe = RecipeConfig(shift=2)
    first, again = Order(7, 100, recipe), Order(7, 100, recipe)
    epochs = [first.epoch(), first.epoch()]
    assert all(torch.equal(epoch.rows.sort().values, torch.arange(100)) for epoch in epochs)
    assert not torch.equal(epochs[0].rows, epochs[1].rows)
    assert all(
        torch.equal(epoch.rows, other.rows) for epoch, other in zip(epochs, [again.epoch(), again.epoch()], strict=True)
    )
    assert epochs[0].shifts.unique().tolist() == [-2, -1, 0, 1, 2]
    assert not Order(7, 100, RecipeConfig(horizontal_flip=False)).epoch().flips.any()


def test_steps_end_a_phase_early() -> None:
    assert steps_of(PhaseConfig(epochs=2, batch_size=64), 100) == 4
    assert steps_of(PhaseConfig(epochs=2, batch_size=64, steps=3), 100) == 3


def test_presets_can_be_named_and_changed() -> None:
    fast = validate(RecipeConfig, {"preset": "fast", "snapshots": [1], "source": {"batch_size": 50}})
    assert (fast.source.optimizer, fast.source.batch_size, fast.snapshots) == ("adamw", 50, (1,))
    assert RecipeConfig.model_validate("paper") == RecipeConfig()
    with pytest.raises(ConfigError, match="no recipe is called 'slow'; there are fast, paper"):
        validate(RecipeConfig, {"preset": "slow"})


def test_a_range_reversed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"learning_rate: low must not be above high, got \[0\.1, 0\.01\]"):
        validate(PhaseConfig, {"learning_rate": [0.1, 0.01]})


def test_a_hashed_epoch_is_a_permutation_with_even_flips_and_shifts() -> None:
    recipe = RecipeConfig(shift=2, horizontal_flip=True)
    seeds = torch.tensor([3, 4, 2**62])
    draw = counted_epoch(seeds, 1, 4_000, recipe)
    assert torch.equal(draw.rows.sort(1).values, torch.arange(4_000).expand(3, -1))
    assert draw.flips.float().mean(1).tolist() == pytest.approx([0.5] * 3, abs=0.03)
    assert set(draw.shifts.flatten().tolist()) == {-2, -1, 0, 1, 2}
    assert draw.shifts.float().mean((0, 1)).tolist() == pytest.approx([0, 0], abs=0.08)
    alone = counted_epoch(seeds[1:2], 1, 4_000, recipe)
    assert torch.equal(alone.rows[0], draw.rows[1])
    assert not torch.equal(counted_epoch(seeds, 2, 4_000, recipe).rows, draw.rows)
    correlations = torch.corrcoef(draw.rows.double()) - torch.eye(3)
    assert float(correlations.abs().max()) < 0.06
