"""Augmentations of a batch of members: symmetries, new members made of old ones, corruption by mask and noise.

A batch is a stack with the prefixes `stem.`, `source.`, `target.`, `head.`, as in `Zoo.parameters`.
`register.augmentation` decorates a function of its options, such a batch, the strength that the study file gives, the
architecture and a generator; it returns the batch that is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kt_ray.config import AugmentationConfig
from kt_ray.errors import ConfigError
from kt_ray.networks import Architecture, PaperArchitecture, State, stacked
from kt_ray.networks.layouts import Layer
from kt_ray.registry import register
from kt_ray.translation.losses import best_order
from kt_ray.translation.units import Layout, layouts, to_units


def augment(
    members: State, config: AugmentationConfig, architecture: Architecture, generator: torch.Generator
) -> State:
    """`members` with new blocks and under the symmetries that `config` asks for, another draw for each member.

    Source blocks that no target was trained for get one of NaN.
    """
    if config.mixup:
        members = mix(members, config.mixup, architecture, generator)
    if config.swap_units:
        members = swap_units(members, config.swap_units, architecture, generator)
    if config.vary:
        varied = noise(stacked.part(members, "source"), config.vary, generator, relative=True)
        members = _without_target(members | stacked.join(source=varied))
    if config.rescale:
        shape = stacked.size(members), layouts(architecture)[0].hidden
        drawn = torch.randn(shape, generator=generator, device=stacked.device(members))
        members = rescale_hidden(members, torch.exp(config.rescale * drawn), architecture)
    if config.channel_permutation:
        permutations = _permutations(members, layouts(architecture)[0].channels, generator)
        members = permute_channels(members, permutations, architecture)
    if config.hidden_permutation:
        permutations = _permutations(members, layouts(architecture)[0].hidden, generator)
        members = permute_hidden(members, permutations, architecture)
    for name, other in config.others.items():
        if other.weight:
            members = register.augmentation.make(name, other.options, members, other.weight, architecture, generator)
    return members


def check_known(config: AugmentationConfig, architecture: Architecture) -> None:
    """Raise ConfigError where `config` asks for symmetries that blocks or networks of `architecture` are not known to
    have."""
    source, target = layouts(architecture)
    units = {"hidden_permutation", "rescale", "swap_units", "mixup"} if source.flat or target.flat else set()
    channels = set() if isinstance(architecture, PaperArchitecture) else {"channel_permutation"}
    problems = [
        f"augmentation.{name}: {what} of pair {architecture.pair} are not known; leave it out"
        for names, what in ((units, "hidden units"), (channels, "stem and head"))
        for name in sorted(names)
        if getattr(config, name)
    ]
    if problems:
        raise ConfigError(problems)


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


def permute_channels(members: State, permutation: Tensor, architecture: Architecture) -> State:
    """The channels of the paper's block in the order `permutation`, int64 [B, C], in stem, source, target and head
    alike.

    The activations between stem and head follow; the logits stay as they are.
    """
    stem, head = Layer("stem.conv.weight", norm="stem.bn"), Layer("head.conv.weight")
    moved = [(name, 1) for name in stem.names()] + [(head.weight, 2)]
    for prefix, layout in zip(("source", "target"), layouts(architecture), strict=True):
        moved += [(f"{prefix}.{layer.weight}", 2) for layer in layout.incoming]
        moved += [(f"{prefix}.{name}", 1) for layer in layout.outgoing for name in layer.names()]
    return members | {name: _reorder(members[name], permutation, axis) for name, axis in moved if name in members}


def permute_hidden(members: State, permutation: Tensor, architecture: Architecture) -> State:
    """The source's hidden units in the order `permutation`, int64 [B, H]; the block computes the same."""
    axes = _of_units(layouts(architecture)[0], "source")
    return members | {name: _reorder(members[name], permutation, axis) for name, axis in axes.items()}


def rescale_hidden(members: State, scale: Tensor, architecture: Architecture) -> State:
    """Every hidden unit of the source times its positive `scale` [B, H], its way out divided by it: the same block."""
    layout, moved = layouts(architecture)[0], State()
    for layer in layout.incoming:
        scaled = [f"{layer.norm}.weight", f"{layer.norm}.bias"] if layer.norm else layer.names()
        moved |= {
            name: members[name] * _along(scale, members[name], 1) for name in (f"source.{name}" for name in scaled)
        }
    for name in (f"source.{layer.weight}" for layer in layout.outgoing):
        moved[name] = members[name] / _along(scale, members[name], 2)
    return members | moved


def swap_units(members: State, probability: float, architecture: Architecture, generator: torch.Generator) -> State:
    """Each hidden unit of a source replaced, with `probability`, by one of another member: a valid block, if no one's.

    Its incoming kernels, BN and outgoing kernels move together.
    """
    layout, device = layouts(architecture)[0], stacked.device(members)
    swapped = torch.rand(stacked.size(members), layout.hidden, generator=generator, device=device) < probability
    donors = torch.randperm(stacked.size(members), generator=generator, device=device)
    permutations = _permutations(members, layout.hidden, generator)
    donated = permute_hidden(stacked.take(members, donors), permutations, architecture)
    mixed = {
        name: donated[name].where(_along(swapped, members[name], axis), members[name])
        for name, axis in _of_units(layout, "source").items()
    }
    return _without_target(members | mixed, swapped.any(1))


def mix(members: State, largest: float, architecture: Architecture, generator: torch.Generator) -> State:
    """Aligned MixUp: source and target of each member with up to `largest` of another's, its units matched first."""
    count, device = stacked.size(members), stacked.device(members)
    source, target = layouts(architecture)
    partners = stacked.take(members, torch.randperm(count, generator=generator, device=device))
    ours, theirs = (
        to_units(stacked.part(state, "source"), source, "dropped").edges.flatten(2) for state in (members, partners)
    )
    partners = permute_hidden(partners, best_order(torch.cdist(ours, theirs).square()), architecture)
    ours, theirs = (
        to_units(stacked.part(state, "target"), target, "dropped").edges.flatten(2) for state in (members, partners)
    )
    order = best_order(torch.cdist(ours, theirs).square().nan_to_num(0))
    for name, axis in _of_units(target, "target").items():
        partners[name] = _reorder(partners[name], order, axis)
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


def _of_units(layout: Layout, prefix: str) -> dict[str, int]:
    """Names of the tensors that hidden units have entries in, and along which axis of a stack."""
    axes = {f"{prefix}.{name}": 1 for layer in layout.incoming for name in layer.names()}
    return axes | {f"{prefix}.{layer.weight}": 2 for layer in layout.outgoing}


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


def _along(values: Tensor, like: Tensor, axis: int) -> Tensor:
    """`values` [B, n] shaped so that they broadcast along `axis` of `like`."""
    shape = [1] * like.ndim
    shape[0], shape[axis] = values.shape
    return values.reshape(shape)


def _is_kernel(value: Tensor) -> bool:
    """Return whether this is a stack of 3×3 kernels."""
    return value.ndim == 5 and value.shape[-1] > 1


def _is_weight(value: Tensor) -> bool:
    """Return whether this is a stack of matrices or kernels, and not of biases or of BN's vectors."""
    return value.ndim > 2


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device)


def _permutations(members: State, length: int, generator: torch.Generator) -> Tensor:
    """A random permutation of so many for each member, int64 [B, length]."""
    return torch.rand(stacked.size(members), length, generator=generator, device=stacked.device(members)).argsort(1)


def _reorder(value: Tensor, permutation: Tensor, axis: int) -> Tensor:
    """`value` [B, …] with `axis` in the order of each member's `permutation`."""
    shape = [1] * value.ndim
    shape[0], shape[axis] = permutation.shape
    return value.gather(axis, permutation.reshape(shape).expand_as(value))
