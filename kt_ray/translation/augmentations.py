"""Augmentations of a batch of members: symmetries, new members made of old ones, corruption by mask and noise.

A batch is a stack with the prefixes `stem.`, `source.`, `target.`, `head.`, as in `Zoo.parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kt_ray.config import AugmentationConfig, PairName
from kt_ray.networks import State, stacked
from kt_ray.translation.losses import best_order
from kt_ray.translation.units import LAYOUTS, Layout, to_units


def augment(members: State, config: AugmentationConfig, pair: PairName, generator: torch.Generator) -> State:
    """`members` with new blocks and under the symmetries that `config` asks for, another draw for each member.

    Source blocks that no target was trained for get one of NaN.
    """
    if config.mixup:
        members = mix(members, config.mixup, pair, generator)
    if config.swap_units:
        members = swap_units(members, config.swap_units, generator)
    if config.vary:
        varied = noise(stacked.part(members, "source"), config.vary, generator, relative=True)
        members = _without_target(members | stacked.join(source=varied))
    if config.rescale:
        drawn = torch.randn(members["source.bn1.weight"].shape, generator=generator, device=_device(members))
        members = rescale_hidden(members, torch.exp(config.rescale * drawn))
    if config.channel_permutation:
        members = permute_channels(members, _permutations(members, "source.bn2.weight", generator), pair)
    if config.hidden_permutation:
        members = permute_hidden(members, _permutations(members, "source.bn1.weight", generator))
    return members


def corrupt(members: State, config: AugmentationConfig, generator: torch.Generator) -> tuple[State, State]:
    """Source and target blocks as the translator and the loss see them: masked and with noise, where asked."""
    source, target = stacked.part(members, "source"), stacked.part(members, "target")
    for settings, kernels in ((config.mask, False), (config.kernel_mask, True)):
        if settings.probability and settings.sides != "target":
            source = mask(source, settings.probability, generator, kernels=kernels)
        if settings.probability and settings.sides != "source":
            target = mask(target, settings.probability, generator, kernels=kernels)
    if config.noise.std:
        if config.noise.sides != "target":
            source = noise(source, config.noise.std, generator, relative=config.noise.relative)
        if config.noise.sides != "source":
            target = noise(target, config.noise.std, generator, relative=config.noise.relative)
    return source, target


def mask(
    block: Mapping[str, Tensor], probability: float, generator: torch.Generator, *, kernels: bool = False
) -> State:
    """Each entry of each weight zeroed with `probability`, without rescaling (the paper's random masking).

    With `kernels`, whole kernels: everything that joins an input with an output.
    """
    masked = {}
    for name, value in block.items():
        if not _is_weight(value):
            masked[name] = value
            continue
        drawn = _uniform(value[..., :1, :1] if kernels and value.ndim == 5 else value, generator)
        masked[name] = value.where(drawn >= probability, 0)
    return masked


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


def rescale_hidden(members: State, scale: Tensor) -> State:
    """Every hidden unit of the source times its positive `scale` [B, H], its way out divided by it: the same block."""
    moved = {name: members[name] * scale for name in ("source.bn1.weight", "source.bn1.bias")}
    outgoing = members["source.conv2.weight"] / scale[:, None, :, None, None]
    return {**members, **moved, "source.conv2.weight": outgoing}


def swap_units(members: State, probability: float, generator: torch.Generator) -> State:
    """Each hidden unit of a source replaced, with `probability`, by one of another member: a valid block, if no one's.

    Its incoming kernels, BN and outgoing kernels move together.
    """
    like = members["source.bn1.weight"]
    swapped = _uniform(like, generator) < probability
    donors = torch.randperm(len(like), generator=generator, device=like.device)
    donated = permute_hidden(take_rows(members, donors), _permutations(members, "source.bn1.weight", generator))
    mixed = dict(members)
    for name in _HIDDEN:
        mixed[name] = donated[name].where(_along(swapped, members[name], 1), members[name])
    name = "source.conv2.weight"
    mixed[name] = donated[name].where(_along(swapped, members[name], 2), members[name])
    return _without_target(mixed, swapped.any(1))


def mix(members: State, largest: float, pair: PairName, generator: torch.Generator) -> State:
    """Aligned MixUp: source and target of each member with up to `largest` of another's, its units matched first."""
    count, device = len(members["source.bn1.weight"]), _device(members)
    partners = take_rows(members, torch.randperm(count, generator=generator, device=device))
    ours, theirs = (
        _unit_vectors(stacked.part(state, "source"), LAYOUTS["basic_to_simple"]) for state in (members, partners)
    )
    partners = permute_hidden(partners, best_order(torch.cdist(ours, theirs).square()))
    layout = LAYOUTS[pair]
    ours, theirs = (_unit_vectors(stacked.part(state, "target"), layout) for state in (members, partners))
    order = best_order(torch.cdist(ours, theirs).square().nan_to_num(0))
    for name in layout.incoming + layout.unit:
        partners[f"target.{name}"] = _reorder(partners[f"target.{name}"], order, 1)
    for name in layout.outgoing:
        partners[f"target.{name}"] = _reorder(partners[f"target.{name}"], order, 2)
    share = largest * torch.rand(count, generator=generator, device=device)
    return {
        name: torch.lerp(value, partners[name], share.reshape(-1, *[1] * (value.ndim - 1)))
        if name.startswith(("source.", "target."))
        else value
        for name, value in members.items()
    }


@dataclass(frozen=True)
class Orientation:
    """Rows or columns of all kernels flipped, then kernels transposed.

    Each is a bool, or a bool tensor of no dimensions on the kernels' device, which no host has to read.
    """

    rows: bool | Tensor = False
    columns: bool | Tensor = False
    transposed: bool | Tensor = False

    @classmethod
    def draw(cls, config: AugmentationConfig, generator: torch.Generator) -> Orientation:
        """One for a batch, as `config` allows."""
        if not (config.flips or config.transposes):
            return cls()
        rows, columns, transposed = torch.rand(3, generator=generator, device=generator.device) < 0.5
        return cls(config.flips and rows, config.flips and columns, config.transposes and transposed)

    def turn(self, state: Mapping[str, Tensor]) -> State:
        """`state` with its kernels turned; a block so turned does to turned activations what it did before."""
        return {name: self._turn(value) if _is_kernel(value) else value for name, value in state.items()}

    def turn_back(self, state: Mapping[str, Tensor]) -> State:
        """The inverse of `turn`."""
        return {
            name: self._flip(_choose(self.transposed, value.transpose(-1, -2), value)) if _is_kernel(value) else value
            for name, value in state.items()
        }

    def _turn(self, value: Tensor) -> Tensor:
        value = self._flip(value)
        return _choose(self.transposed, value.transpose(-1, -2), value)

    def _flip(self, value: Tensor) -> Tensor:
        value = _choose(self.rows, value.flip(-2), value)
        return _choose(self.columns, value.flip(-1), value)


def _choose(condition: bool | Tensor, value: Tensor, other: Tensor) -> Tensor:
    """Return `value` if `condition`, else `other`, without reading a condition that is on a device."""
    if isinstance(condition, Tensor):
        return torch.where(condition, value, other)
    return value if condition else other


_NORM = ("weight", "bias", "running_mean", "running_var")
_HIDDEN = ("source.conv1.weight", *(f"source.bn1.{name}" for name in _NORM))


def take_rows(members: Mapping[str, Tensor], rows: Tensor) -> State:
    """The members at `rows`, int64."""
    return {name: value[rows] for name, value in members.items()}


def _without_target(members: State, rows: Tensor | None = None) -> State:
    """`members` whose target is NaN where `rows` (bool [B]; all if None)."""
    return {
        name: value
        if not name.startswith("target.")
        else torch.full_like(value, torch.nan)
        if rows is None
        else value.masked_fill(_along(rows[:, None], value, 1), torch.nan)
        for name, value in members.items()
    }


def _unit_vectors(block: State, layout: Layout) -> Tensor:
    """Incoming and outgoing weights of every hidden unit in one vector, [B, H, n]."""
    return to_units(block, layout).edges.flatten(2)


def _along(values: Tensor, like: Tensor, axis: int) -> Tensor:
    """`values` [B, n] shaped so that they broadcast along `axis` of `like`."""
    shape = [1] * like.ndim
    shape[0], shape[axis] = values.shape
    return values.reshape(shape)


def _device(members: Mapping[str, Tensor]) -> torch.device:
    return next(iter(members.values())).device


def _is_kernel(value: Tensor) -> bool:
    """Return whether this is a stack of 3×3 kernels."""
    return value.ndim == 5 and value.shape[-1] > 1


def _is_weight(value: Tensor) -> bool:
    """Return whether this is a stack of matrices or kernels, and not of biases or of BN's vectors."""
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
