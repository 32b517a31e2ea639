"""Augmentations of a batch of members: symmetries that change no accuracy, and corruption by mask and noise.

A batch is a stack with the prefixes `stem.`, `source.`, `target.`, `head.`, as in `Zoo.parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kt_ray.config import AugmentationConfig, PairName
from kt_ray.networks import State, stacked
from kt_ray.translators.tokens import LAYOUTS


def augment(members: State, config: AugmentationConfig, pair: PairName, generator: torch.Generator) -> State:
    """`members` under the symmetries that `config` asks for, another draw for each member."""
    if config.channel_permutation:
        members = permute_channels(members, _permutations(members, "source.bn2.weight", generator), pair)
    if config.hidden_permutation:
        members = permute_hidden(members, _permutations(members, "source.bn1.weight", generator))
    return members


def corrupt(members: State, config: AugmentationConfig, generator: torch.Generator) -> tuple[State, State]:
    """Source and target blocks as the translator and the loss see them: masked and with noise, where asked."""
    source, target = stacked.part(members, "source"), stacked.part(members, "target")
    if config.mask.probability:
        if config.mask.sides != "target":
            source = mask(source, config.mask.probability, generator)
        if config.mask.sides != "source":
            target = mask(target, config.mask.probability, generator)
    if config.noise.std:
        if config.noise.sides != "target":
            source = noise(source, config.noise.std, generator, relative=config.noise.relative)
        if config.noise.sides != "source":
            target = noise(target, config.noise.std, generator, relative=config.noise.relative)
    return source, target


def mask(block: Mapping[str, Tensor], probability: float, generator: torch.Generator) -> State:
    """Each entry of each weight zeroed with `probability`, without rescaling (the paper's random masking)."""
    return {
        name: value.where(_uniform(value, generator) >= probability, 0) if _is_weight(value) else value
        for name, value in block.items()
    }


def noise(block: Mapping[str, Tensor], std: float, generator: torch.Generator, *, relative: bool = False) -> State:
    """Gaussian noise on each weight, of deviation `std` (the paper's), or `std` times that of the member's tensor."""
    noisy = {}
    for name, value in block.items():
        if not _is_weight(value):
            noisy[name] = value
            continue
        scale = value.flatten(1).std(1).reshape(-1, *[1] * (value.ndim - 1)) if relative else 1.0
        noisy[name] = value + std * scale * torch.randn(value.shape, generator=generator, device=value.device)
    return noisy


def permute_channels(members: State, permutation: Tensor, pair: PairName) -> State:
    """The block's channels in the order `permutation`, int64 [B, C], in stem, source, target and head alike.

    The activations between stem and head follow; the logits stay as they are.
    """
    into_block = ["stem.conv.weight", "source.conv2.weight"]
    into_block += [f"stem.bn.{name}" for name in _NORM] + [f"source.bn2.{name}" for name in _NORM]
    from_block = ["source.conv1.weight", "head.conv.weight"]
    layout = LAYOUTS[pair]
    into_block += [f"target.{name}" for name in layout.outgoing + layout.channel]
    from_block += [f"target.{name}" for name in layout.incoming]
    moved = {name: _reorder(members[name], permutation, 1) for name in into_block if name in members}
    moved |= {name: _reorder(members[name], permutation, 2) for name in from_block if name in members}
    return {**members, **moved}


def permute_hidden(members: State, permutation: Tensor) -> State:
    """The source's hidden units in the order `permutation`, int64 [B, H]; the block computes the same."""
    moved = {name: _reorder(members[name], permutation, 1) for name in _HIDDEN}
    return {**members, **moved, "source.conv2.weight": _reorder(members["source.conv2.weight"], permutation, 2)}


_NORM = ("weight", "bias", "running_mean", "running_var")
_HIDDEN = ("source.conv1.weight", *(f"source.bn1.{name}" for name in _NORM))


def _is_weight(value: Tensor) -> bool:
    """Whether this is a stack of matrices or kernels, and not of biases or of BN's vectors."""
    return value.ndim > 2


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device)


def _permutations(members: State, name: str, generator: torch.Generator) -> Tensor:
    """A random permutation for each member, as long as its vector `name`."""
    return _uniform(members[name], generator).argsort(1)


def _reorder(value: Tensor, permutation: Tensor, axis: int) -> Tensor:
    """`value` [B, …] with `axis` in the order of each member's `permutation`."""
    shape = [1] * value.ndim
    shape[0], shape[axis] = permutation.shape
    return value.gather(axis, permutation.reshape(shape).expand_as(value))
