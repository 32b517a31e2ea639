"""Blocks as hidden units × channels, the view that every family of translators reads and writes.

`read` turns a stack of source blocks into `Units`, with BN dropped (as in the paper) or folded; `write` turns `Units`
into the parameters of a target block. `features` are further numbers that a translator may be given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kt_ray.config import TranslatorConfig
from kt_ray.errors import ConfigError
from kt_ray.networks import Architecture, State
from kt_ray.networks.layouts import BlockLayout, Layer
from kt_ray.registry import cached

BatchNorm = Literal["dropped", "folded"]


@dataclass(frozen=True)
class Units:
    """A stack of B blocks with H hidden units between C channels.

    `edges` [B, H, C, P, K] are the P kernels of K values between a unit and a channel: incoming and outgoing, of 9
    values each, in a block of two 3×3 convolutions. `unit` [B, H, U] and `channel` [B, C, V] are their biases.
    """

    edges: Tensor
    unit: Tensor
    channel: Tensor

    def tokens(self) -> Tensor:
        """Return a token for each pair of unit and channel: edges and the biases of both, [B, H, C, P·K + U + V]."""
        batch, hidden, channels = self.edges.shape[:3]
        return torch.cat(
            [
                self.edges.flatten(3),
                self.unit[:, :, None].expand(batch, hidden, channels, -1),
                self.channel[:, None].expand(batch, hidden, channels, -1),
            ],
            dim=-1,
        )

    def take(self, units: Tensor) -> Units:
        """Return the hidden units at `units`, int64 [B, n], of each block."""
        return Units(take(self.edges, units), take(self.unit, units), self.channel)


def take(values: Tensor, units: Tensor) -> Tensor:
    """Return the `values` [B, H, …] of the hidden units at `units`, int64 [B, n]: [B, n, …]."""
    rows = torch.arange(units.shape[0], device=units.device)  # `len` would fix the batch of an exported translator
    return values[rows[:, None], units]


@dataclass(frozen=True)
class Layout:
    """A block's layers as units × channels: weights into units [H, C, …], out of them [C, H, …], kernels of one size.

    If a block reads and writes different numbers of channels, C is the larger one; the missing kernels are zero.
    A block whose layers are unknown is one unit and one channel, joined by all its values: `flat` holds names and
    shapes of its tensors.
    """

    incoming: tuple[Layer, ...] = ()
    outgoing: tuple[Layer, ...] = ()
    rectified: bool = True  # whether a ReLU follows the sum of input and last layer
    hidden: int = 1
    inputs: int = 1
    outputs: int = 1
    flat: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def channels(self) -> int:
        """C, the number of channels."""
        return max(self.inputs, self.outputs)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, those into units first."""
        return self.incoming + self.outgoing

    @property
    def unit(self) -> tuple[Layer, ...]:
        """The layers with a bias, or batch norm, of units."""
        return tuple(layer for layer in self.incoming if layer.bias or layer.norm)

    @property
    def channel(self) -> tuple[Layer, ...]:
        """The layers with a bias, or batch norm, of channels."""
        return tuple(layer for layer in self.outgoing if layer.bias or layer.norm)

    @property
    def kernels(self) -> int:
        """P, the number of kernels between a unit and a channel."""
        return 1 if self.flat else len(self.layers)

    @property
    def values(self) -> int:
        """K, the number of values of a kernel."""
        return sum(math.prod(shape) for _, shape in self.flat) if self.flat else math.prod(self.layers[0].kernel)

    @property
    def projects_itself(self) -> bool:
        """True if one layer leads into units and one out of them, so that a unit of the source can be one here."""
        return len(self.incoming) == len(self.outgoing) == 1

    def silenced(self, state: Mapping[str, Tensor]) -> State:
        """Return a stack of blocks with zeros in all layers out of units. Raises ConfigError if the layout is flat."""
        if self.flat:
            raise ConfigError("nothing is known of the target block but its tensors; give its pair a layout")
        silent = {layer.weight for layer in self.outgoing}
        silent |= {layer.bias or f"{layer.norm}.bias" for layer in self.channel}
        silent |= {f"{layer.norm}.running_mean" for layer in self.channel if layer.norm}
        return {name: torch.zeros_like(value) if name in silent else value for name, value in state.items()}


@cached(64)
def layouts(architecture: Architecture) -> tuple[Layout, Layout]:
    """Return the layouts of source and target blocks of `architecture`."""
    described = architecture.layouts()
    with torch.device("meta"):
        blocks = architecture.source_block(), architecture.target_block()
    source, target = (_seen(layout, block) for layout, block in zip(described, blocks, strict=True))
    return source, target


def _seen(layout: BlockLayout, block: nn.Module) -> Layout:
    """Return the layout of a block, flat unless it has a single layer of hidden units and kernels of one size."""
    state = block.state_dict()
    if len(layout.hidden) == 1 and layout.residual:
        incoming, outgoing = layout.hidden[0].incoming, layout.hidden[0].outgoing
        into = {tuple(state[layer.weight].shape[:2]) for layer in incoming}
        out = {tuple(state[layer.weight].shape[:2]) for layer in outgoing}
        if len(into) == len(out) == len({layer.kernel for layer in incoming + outgoing}) == 1:
            (hidden, inputs), (outputs, read) = into.pop(), out.pop()
            if hidden == read:
                return Layout(incoming, outgoing, layout.rectified, hidden, inputs, outputs)
    names = [name for name in state if "num_batches_tracked" not in name and not layout.is_copied(name)]
    return Layout(flat=tuple((name, tuple(state[name].shape)) for name in names))


def target_layout(architecture: Architecture) -> Layout:
    """Return the layout of target blocks of `architecture`."""
    return layouts(architecture)[1]


def to_units(block: Mapping[str, Tensor], layout: Layout, batch_norm: BatchNorm = "folded") -> Units:
    """Return a stack of blocks as units. With batch norm dropped, biases are left out too."""
    if layout.flat:
        values = torch.cat([block[name].flatten(1) for name, _ in layout.flat], dim=1)[:, None, None, None]
        return Units(values, *(values.new_zeros(values.shape[0], 1, 0) for _ in range(2)))
    edges, biases = [], dict[Layer, Tensor]()
    for layer in layout.layers:
        if batch_norm == "dropped":
            weight = block[layer.weight]
        else:
            weight, biases[layer] = layer.folded(block)
        values = weight.flatten(3) if layer.kernel else weight[..., None]
        edges.append(pad(values if layer in layout.incoming else values.transpose(1, 2), layout.channels, 2))
    stacked = torch.stack(edges, dim=3)
    channel = pad(_columns(biases, layout.channel, stacked, layout.outputs), layout.channels, 1)
    return Units(stacked, _columns(biases, layout.unit, stacked, layout.hidden), channel)


def pad(values: Tensor, size: int, axis: int) -> Tensor:
    """Return `values` padded with zeros to `size` along `axis`."""
    missing = size - values.shape[axis]
    if not missing:
        return values
    shape = [*values.shape[:axis], missing, *values.shape[axis + 1 :]]
    return torch.cat([values, values.new_zeros(shape)], dim=axis)


def write(units: Units, layout: Layout) -> State:
    """Return `units` as a stack of blocks, the inverse of `to_units`; batch norms only add biases."""
    batch, hidden = units.edges.shape[:2]
    if layout.flat:
        parts = torch.split(units.edges.flatten(1), [math.prod(shape) for _, shape in layout.flat], dim=1)
        return {name: part.reshape(batch, *shape) for (name, shape), part in zip(layout.flat, parts, strict=True)}
    state: State = {}
    for number, layer in enumerate(layout.layers):
        outgoing = number >= len(layout.incoming)
        channels = layout.outputs if outgoing else layout.inputs
        edge, rows, columns = units.edges[:, :, :channels, number], hidden, channels
        if outgoing:
            rows, columns = columns, rows
        state[layer.weight] = (edge.transpose(1, 2) if outgoing else edge).reshape(batch, rows, columns, *layer.kernel)
    for layers, biases in ((layout.unit, units.unit), (layout.channel, units.channel[:, : layout.outputs])):
        for number, layer in enumerate(layers):
            state |= _with_bias(layer, biases[..., number])
    return state


def _with_bias(layer: Layer, bias: Tensor) -> State:
    """Return the bias of a layer, or the batch norm after it that only adds this bias."""
    if layer.norm is None:
        return {str(layer.bias): bias}
    neutral = {"weight": (1 + layer.eps) ** 0.5, "running_mean": 0.0, "running_var": 1.0}
    state = {f"{layer.norm}.{name}": torch.full_like(bias, value) for name, value in neutral.items()}
    state |= {layer.bias: torch.zeros_like(bias)} if layer.bias else {}
    return state | {f"{layer.norm}.bias": bias}


def read(source: Mapping[str, Tensor], architecture: Architecture, batch_norm: BatchNorm) -> Units:
    """Return a stack of source blocks as units: with biases if BN is folded, raw kernels alone if it is dropped."""
    return to_units(source, layouts(architecture)[0], batch_norm)


def fold(state: Mapping[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Return kernels [B, out, in, …] and biases [B, out] of a convolution with the BN after it folded in."""
    return Layer(f"{convolution}.weight", norm=norm).folded(state)


def rectified_moments(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and second moment of ReLU of Gaussians with these means and deviations, elementwise."""
    deviation = deviation.clamp_min(1e-6)
    ratio = mean / deviation
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + torch.erf(ratio / math.sqrt(2)))
    first = mean * below + deviation * density
    return first, (mean.square() + deviation.square()) * below + mean * deviation * density


def balanced(units: Units) -> Units:
    """Rescale each hidden unit to equal norms of incoming (with bias) and outgoing weights; the function stays."""
    incoming = units.edges[:, :, :, 0].square().flatten(2).sum(-1) + units.unit.square().sum(-1)
    outgoing = units.edges[:, :, :, 1].square().flatten(2).sum(-1)
    scale = (outgoing.clamp_min(1e-12) / incoming.clamp_min(1e-12)) ** 0.25
    both = torch.stack([scale, 1 / scale], dim=-1)[:, :, None, :, None]
    return Units(units.edges * both, units.unit * scale[..., None], units.channel)


def feature_widths(config: TranslatorConfig, architecture: Architecture) -> tuple[int, int]:
    """Return U and V of the `Units` that families read: biases and `features`."""
    folded, statistics, context = config.batch_norm == "folded", config.statistics, config.context == "network"
    source = layouts(architecture)[0]
    stem = 9 * architecture.image_shape[0] + 1
    probed = 2 * tells_base(config, architecture)
    return (
        folded * len(source.unit) + 4 * statistics + probed,
        folded * len(source.channel) + 2 * statistics + (stem + 1) * context + probed,
    )


def edge_width(config: TranslatorConfig, architecture: Architecture) -> int:
    """Return how many values a family reads for a pair of source unit and channel: kernels, also those of the base."""
    source, target = layouts(architecture)
    return source.kernels * source.values + tells_base(config, architecture) * target.kernels * target.values


def tells_base(config: TranslatorConfig, architecture: Architecture) -> bool:
    """Return whether the family reads the projected block, whose units are chosen source units."""
    return config.projects and target_layout(architecture).values > 1


def features(
    members: Mapping[str, Tensor], config: TranslatorConfig, architecture: Architecture
) -> tuple[Tensor, Tensor]:
    """Return the further features of hidden units [B, H, …] and channels [B, C, …] that `config` asks for.

    With `statistics`, mean β and deviation |γ| of BN, and of units the first two moments of the rectified value. With
    `context: network`, of channels the folded kernel and bias of the stem and the norm of the head's weights.
    """
    unit: list[Tensor] = []
    channel: list[Tensor] = []
    layout = layouts(architecture)[0]
    if config.statistics:
        into, out = layout.incoming[0].norm, layout.outgoing[0].norm
        mean, deviation = members[f"{into}.bias"], members[f"{into}.weight"].abs()
        unit += [mean, deviation, *rectified_moments(mean, deviation)]
        of_channels = (members[f"{out}.bias"], members[f"{out}.weight"].abs())
        channel += [pad(values, layout.channels, 1) for values in of_channels]
    if config.context == "network":
        kernel, bias = fold(members, "stem.conv", "stem.bn")
        head, _ = fold(members, "head.conv", "head.bn")
        channel += [*kernel.flatten(2).unbind(-1), bias, head.flatten(2).square().sum(1).sqrt()]
    like = next(iter(members.values()))
    empty = [like.new_zeros(like.shape[0], count, 0) for count in (layout.hidden, layout.channels)]
    return tuple(  # type: ignore[return-value]
        torch.stack(values, dim=-1) if values else nothing
        for values, nothing in zip((unit, channel), empty, strict=True)
    )


def _columns(biases: Mapping[Layer, Tensor], layers: tuple[Layer, ...], edges: Tensor, count: int) -> Tensor:
    """Return the `biases` of `layers` for `count` units or channels side by side, [B, count, …]."""
    found = [biases[layer] for layer in layers if layer in biases]
    return torch.stack(found, dim=-1) if found else edges.new_zeros(edges.shape[0], count, 0)
