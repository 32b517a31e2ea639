"""What a translator is compared with. Every function returns a stack of target blocks, one for each member."""

from __future__ import annotations

import torch

from kt_ray.networks import Architecture, State, stacked
from kt_ray.translators.tokens import LAYOUTS, pruned_block
from kt_ray.zoo.members import Zoo

__all__ = ["mean_target", "nearest_target", "pruned_block", "random_target", "zero_block"]


def random_target(architecture: Architecture, members: int, seed: int = 0) -> State:
    """Freshly initialised target blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return stacked.stack(architecture.target_block().state_dict() for _ in range(members))


def zero_block(architecture: Architecture, members: int) -> State:
    """Target blocks that write nothing: all outgoing weights and biases are zero, and the input passes."""
    layout = LAYOUTS[architecture.pair]
    silent = (*layout.outgoing, *layout.channel)
    blocks = random_target(architecture, members)
    return {name: torch.zeros_like(value) if name in silent else value for name, value in blocks.items()}


def mean_target(train: Zoo, members: int) -> State:
    """The mean of the training members' targets."""
    return {
        name: value.mean(0, keepdim=True).expand(members, *value.shape[1:])
        for name, value in train.part("target").items()
    }


def nearest_target(train: Zoo, members: Zoo) -> State:
    """The target of the training member whose source weights are nearest (the paper's greedy replacement)."""
    known, asked = (
        torch.cat([value.flatten(1) for name, value in zoo.part("source").items() if name.startswith("conv")], dim=1)
        for zoo in (train, members)
    )
    nearest = torch.cdist(asked, known).argmin(1)
    return {name: value[nearest] for name, value in train.part("target").items()}
