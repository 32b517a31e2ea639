"""What a recipe means for one member: its own hyper-parameters and data order, drawn from its seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kt_ray.config import PhaseConfig, RecipeConfig
from kt_ray.zoo.members import Member

Hyperparameters = dict[str, float | int]
_PHASE_RANGES = ("epochs", "learning_rate", "weight_decay")


def ranges_of(recipe: RecipeConfig) -> dict[str, tuple[float, float]]:
    """Column name to range of what the recipe varies between members."""
    found = {}
    for phase in ("source", "target"):
        for name in _PHASE_RANGES:
            value = getattr(getattr(recipe, phase), name)
            if isinstance(value, tuple):
                found[f"{phase}_{name}"] = value
    for name in ("shift", "initial_scale"):
        if isinstance(getattr(recipe, name), tuple):
            found[name] = getattr(recipe, name)
    return found


def recipe_of(recipe: RecipeConfig, member: Member) -> tuple[RecipeConfig, Hyperparameters]:
    """The recipe of one member, numbers in place of ranges, and the numbers drawn.

    Each number has a generator of its own, so that one range more does not change what others give.
    """
    source = recipe.brief if member.brief else recipe.source
    content = recipe.model_dump(mode="json") | {"source": source.model_dump(mode="json")}
    drawn: Hyperparameters = {}
    for name, (low, high) in ranges_of(recipe.model_copy(update={"source": source})).items():
        generator = random.Random(member.seed_of(f"recipe {name}"))
        whole = name.endswith("epochs") or name == "shift"
        value = generator.randint(int(low), int(high)) if whole else _log_uniform(generator, low, high)
        drawn[name] = value
        phase, _, field = name.partition("_")
        if phase in ("source", "target"):
            content[phase][field] = value
        else:
            content[name] = value
    if member.brief:
        content["snapshots"] = ()
    return RecipeConfig.model_validate(content), drawn


def _log_uniform(generator: random.Random, low: float, high: float) -> float:
    return math.exp(generator.uniform(math.log(low), math.log(high)))


@dataclass(frozen=True)
class Draw:
    """One epoch of one or many members: `rows` int64 [..., n], `flips` bool [..., n], `shifts` int64 [..., n, 2].

    `shifts` is [..., 0, 2] where images are not moved.
    """

    rows: Tensor
    flips: Tensor
    shifts: Tensor

    def batch(self, start: int, size: int) -> Draw:
        """Images `start` to `start + size` of each member."""
        chosen = slice(start, start + size)
        return Draw(self.rows[..., chosen], self.flips[..., chosen], self.shifts[..., chosen, :])


class Order:
    """The data order of one phase of one member: a permutation, flips and shifts, new every epoch."""

    def __init__(self, seed: int, images: int, recipe: RecipeConfig) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.images = images
        self.flip = recipe.horizontal_flip
        assert isinstance(recipe.shift, int)
        self.shift = recipe.shift

    def epoch(self) -> Draw:
        """The next epoch."""
        rows = torch.randperm(self.images, generator=self.generator)
        flips = torch.rand(self.images, generator=self.generator) < 0.5
        moved = self.images if self.shift else 0
        shifts = torch.randint(-self.shift, self.shift + 1, (moved, 2), generator=self.generator)
        return Draw(rows, flips & self.flip, shifts)


def epoch_of(orders: list[Order], device: torch.device | str) -> Draw:
    """The next epoch of many members, stacked: rows [M, n]."""
    draws = [order.epoch() for order in orders]
    return Draw(
        torch.stack([draw.rows for draw in draws]).to(device),
        torch.stack([draw.flips for draw in draws]).to(device),
        torch.stack([draw.shifts for draw in draws]).to(device),
    )


def counted_epoch(seeds: Tensor, epoch: int, images: int, recipe: RecipeConfig) -> Draw:
    """The epoch number `epoch` of members with `seeds`, int64 [M], made on their device by hashing a counter.

    It is a function of seed, epoch and image alone, the same on every device, and other than what `epoch_of` gives.
    """
    assert isinstance(recipe.shift, int)
    places = torch.arange(images, device=seeds.device)
    keys = [
        _hashed(_hashed(seeds + 3 * epoch + stream)[:, None] + places) for stream in range(3 if recipe.shift else 2)
    ]
    flips = (keys[1] & 1).bool() & recipe.horizontal_flip
    shifts = torch.empty(len(seeds), 0, 2, dtype=torch.int64, device=seeds.device)
    if recipe.shift:
        width = 2 * recipe.shift + 1
        shifts = torch.stack([keys[2] >> 40, keys[2] & 0xFFFFFF], dim=-1).remainder(width) - recipe.shift
    return Draw(keys[0].argsort(dim=1, stable=True), flips, shifts)


def _hashed(x: Tensor) -> Tensor:
    """SplitMix64's output function (Steele et al., 2014) of int64 numbers, whose products wrap around."""
    x = x * -7046029254386353131  # 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30 & 2**34 - 1)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27 & 2**37 - 1)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ (x >> 31 & 2**33 - 1)


def steps_of(phase: PhaseConfig, images: int) -> int:
    """Steps of a phase; its epochs must be a number."""
    assert isinstance(phase.epochs, int)
    steps = phase.epochs * -(-images // phase.batch_size)
    return min(steps, phase.steps) if phase.steps else steps


def learning_rates(schedule: str, steps: int) -> Iterator[float]:
    """The share of the peak learning rate at each of `steps` steps."""
    for step in range(steps):
        done = step / steps
        if schedule == "constant":
            yield 1.0
        elif schedule == "cosine":
            yield (1 + math.cos(math.pi * done)) / 2
        else:  # one cycle: up for a fifth of the steps, down to 0 after it
            yield min((step + 1) / steps / 0.2, (1 - done) / 0.8, 1.0)
