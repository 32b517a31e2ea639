"""Blocks as hidden units × channels, the view that every family of translators reads and writes.

`read` turns a stack of source blocks into `Units`, with BN dropped (the paper's) or folded; `write` turns `Units`
into the parameters of a target block. `features` are what a translator may know beside the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from kt_ray.config import TranslatorConfig
from kt_ray.errors import ConfigError
from kt_ray.networks import Architecture, PaperArchitecture, State
from kt_ray.networks.layouts import BlockLayout, Layer
from kt_ray.registry import on_change

BatchNorm = Literal["dropped", "folded"]


@dataclass(frozen=True)
class Units:
    """A stack of B blocks with H hidden units between C channels.

    `edges` [B, H, C, P, K]: what joins a unit with a channel, P kernels of K values (a convolution block: incoming
    and outgoing kernel of 9); `unit` [B, H, U] and `channel` [B, C, V]: what belongs to one of either (biases).
    """

    edges: Tensor
    unit: Tensor
    channel: Tensor

    def tokens(self) -> Tensor:
        """One token for each unit and channel, [B, H, C, P·K + U + V]: edges beside what belongs to either end."""
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
        """The hidden units at `units`, int64 [B, n], of each block."""
        rows = torch.arange(units.shape[0], device=units.device)[:, None]
        return Units(self.edges[rows, units], self.unit[rows, units], self.channel)


def take(values: Tensor, units: Tensor) -> Tensor:
    """`values` [B, H, …] of the hidden units at `units`, int64 [B, n]: [B, n, …]."""
    rows = torch.arange(units.shape[0], device=units.device)  # `len` would fix the batch of an exported translator
    return values[rows[:, None], units]


@dataclass(frozen=True)
class Layout:
    """How a block is seen as units: layers into them, weights [H, C, …], and out of them, [C, H, …], all kernels alike.

    A block that reads other channels than it writes is seen with as many as are more; kernels of the others are zero.
    `unit` and `channel` are the layers with biases, or batch norm, of units and of channels. A block of which no more
    is known than its tensors is one unit and one channel, joined by all values: `flat` has their names and shapes.
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
        """C: channels that units are seen between."""
        return max(self.inputs, self.outputs)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, those that lead in first."""
        return self.incoming + self.outgoing

    @property
    def unit(self) -> tuple[Layer, ...]:
        """Layers that give units a bias."""
        return tuple(layer for layer in self.incoming if layer.bias or layer.norm)

    @property
    def channel(self) -> tuple[Layer, ...]:
        """Layers that give channels a bias."""
        return tuple(layer for layer in self.outgoing if layer.bias or layer.norm)

    @property
    def kernels(self) -> int:
        """P: kernels that join a unit with a channel."""
        return 1 if self.flat else len(self.layers)

    @property
    def values(self) -> int:
        """K: values of one kernel."""
        return sum(math.prod(shape) for _, shape in self.flat) if self.flat else math.prod(self.layers[0].kernel)

    @property
    def projects_itself(self) -> bool:
        """Whether a unit is written by one layer and read by one, so that it can be one of the source's."""
        return len(self.incoming) == len(self.outgoing) == 1

    def silenced(self, state: Mapping[str, Tensor]) -> State:
        """A stack of blocks with nothing going out of any unit. Raises ConfigError if the layout is flat."""
        if self.flat:
            raise ConfigError("nothing is known of the target block but its tensors; give its pair a layout")
        silent = {layer.weight for layer in self.outgoing}
        silent |= {layer.bias or f"{layer.norm}.bias" for layer in self.channel}
        silent |= {f"{layer.norm}.running_mean" for layer in self.channel if layer.norm}
        return {name: torch.zeros_like(value) if name in silent else value for name, value in state.items()}


@lru_cache(maxsize=64)
def layouts(architecture: Architecture) -> tuple[Layout, Layout]:
    """How source and target blocks of `architecture` are seen."""
    described = architecture.layouts()
    with torch.device("meta"):
        blocks = architecture.source_block(), architecture.target_block()
    source, target = (_seen(layout, block) for layout, block in zip(described, blocks, strict=True))
    return source, target


on_change(layouts.cache_clear)


def _seen(layout: BlockLayout, block: nn.Module) -> Layout:
    """How a block with this layout is seen: flat if it has not one layer of hidden units and kernels of one size."""
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
    """How target blocks of `architecture` are seen."""
    return layouts(architecture)[1]


def target_hidden(architecture: Architecture) -> int:
    """Hidden units of the target block."""
    return layouts(architecture)[1].hidden


def to_units(block: Mapping[str, Tensor], layout: Layout, batch_norm: BatchNorm = "folded") -> Units:
    """A stack of blocks in the view of `layout`. With batch norm dropped, biases are left out too."""
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
    """`values` with zeros after them along `axis`, `size` in all."""
    missing = size - values.shape[axis]
    if not missing:
        return values
    shape = [*values.shape[:axis], missing, *values.shape[axis + 1 :]]
    return torch.cat([values, values.new_zeros(shape)], dim=axis)


def write(units: Units, layout: Layout) -> State:
    """The inverse of `to_units`; batch norms do nothing but add biases."""
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
    """The bias of a layer, or the batch norm after it that does nothing but add it."""
    if layer.norm is None:
        return {str(layer.bias): bias}
    neutral = {"weight": (1 + layer.eps) ** 0.5, "running_mean": 0.0, "running_var": 1.0}
    state = {f"{layer.norm}.{name}": torch.full_like(bias, value) for name, value in neutral.items()}
    state |= {layer.bias: torch.zeros_like(bias)} if layer.bias else {}
    return state | {f"{layer.norm}.bias": bias}


def read(source: Mapping[str, Tensor], architecture: Architecture, batch_norm: BatchNorm) -> Units:
    """A stack of source blocks as units. Folded: with biases of both ends; dropped: the raw kernels alone."""
    return to_units(source, layouts(architecture)[0], batch_norm)


def fold(state: Mapping[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Kernels [B, out, in, …] and biases [B, out] of a convolution of the paper's network with the BN after it folded
    in."""
    return Layer(f"{convolution}.weight", norm=norm).folded(state)


def importance(source: Mapping[str, Tensor], architecture: Architecture, batch_norm: BatchNorm) -> Tensor:
    """How much each hidden unit contributes to the output, [B, H].

    Folded: expected power of the rectified unit, whose pre-activation BN gives mean β and deviation |γ|, times its
    squared outgoing norm. Dropped, or where no BN says what a unit sees: squared incoming times squared outgoing norm.
    """
    layout = layouts(architecture)[0]
    edges = read(source, architecture, batch_norm).edges
    ends = torch.split(edges, [len(layout.incoming), len(layout.outgoing)], dim=3)
    incoming, outgoing = (part.square().flatten(2).sum(-1) for part in ends)
    norm = layout.incoming[0].norm
    if batch_norm == "dropped" or norm is None:
        return incoming * outgoing
    return rectified_moments(source[f"{norm}.bias"], source[f"{norm}.weight"].abs())[1] * outgoing


def rectified_moments(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """First and second moment of ReLU of a Gaussian with this mean and deviation, elementwise."""
    deviation = deviation.clamp_min(1e-6)
    ratio = mean / deviation
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + torch.erf(ratio / math.sqrt(2)))
    first = mean * below + deviation * density
    return first, (mean.square() + deviation.square()) * below + mean * deviation * density


def importance_order(source: Mapping[str, Tensor], architecture: Architecture, batch_norm: BatchNorm) -> Tensor:
    """Indices of the hidden units, most important first, int64 [B, H]."""
    return importance(source, architecture, batch_norm).argsort(dim=1, descending=True, stable=True)


def first(order: Tensor, chosen: Tensor) -> Tensor:
    """`order`, int64 [B, H], with the units `chosen` [B, K] first, as they come, and the others after them."""
    is_chosen = (order[..., None] == chosen[:, None]).any(-1)
    places = is_chosen.byte().argsort(dim=1, stable=True)[:, : order.shape[1] - chosen.shape[1]]
    return torch.cat([chosen, order.gather(1, places)], dim=1)


def balanced(units: Units) -> Units:
    """The same function with incoming (bias included) and outgoing weights of each hidden unit of equal norm."""
    incoming = units.edges[:, :, :, 0].square().flatten(2).sum(-1) + units.unit.square().sum(-1)
    outgoing = units.edges[:, :, :, 1].square().flatten(2).sum(-1)
    scale = (outgoing.clamp_min(1e-12) / incoming.clamp_min(1e-12)) ** 0.25
    both = torch.stack([scale, 1 / scale], dim=-1)[:, :, None, :, None]
    return Units(units.edges * both, units.unit * scale[..., None], units.channel)


def feature_widths(config: TranslatorConfig, architecture: Architecture) -> tuple[int, int]:
    """U and V of what the families are given: biases and `features`."""
    folded, statistics, context = config.batch_norm == "folded", config.statistics, config.context == "network"
    source = layouts(architecture)[0]
    stem = 9 * architecture.image_shape[0] + 1
    probed = 2 * tells_base(config, architecture)
    return (
        folded * len(source.unit) + 4 * statistics + probed,
        folded * len(source.channel) + 2 * statistics + (stem + 1) * context + probed,
    )


def edge_width(config: TranslatorConfig, architecture: Architecture) -> int:
    """Values that join a source unit with a channel, as the families are given them: its kernels, and the base's."""
    source, target = layouts(architecture)
    return source.kernels * source.values + tells_base(config, architecture) * target.kernels * target.values


def tells_base(config: TranslatorConfig, architecture: Architecture) -> bool:
    """Whether the family is given the projected block: its units are chosen source units."""
    return config.projects and target_layout(architecture).values > 1


def problems_of(config: TranslatorConfig, architecture: Architecture) -> list[str]:
    """Return what `config` asks for and is not known of the blocks of `architecture`, a line each."""
    source, target = layouts(architecture)
    pair, problems = architecture.pair, list[str]()
    if source.flat or target.flat:
        which = "source" if source.flat else "target"
        why = f"of pair {pair} the {which} block's layout is not one layer of hidden units with kernels of one size"
        if config.family != "mlp":
            problems.append(f"translator.family: {why}; only the family mlp serves it, got {config.family}")
        if config.output == "residual":
            problems.append(f"translator.output: {why}, so no block can be made without learning; set it to direct")
        if config.refinement.steps and config.refinement.starts > 1:
            problems.append(f"translator.refinement.starts: {why}; set it to 1")
    if source.flat and (config.canonical or config.statistics):
        problems.append(f"translator: of pair {pair} no hidden units are known; set canonical and statistics to false")
    if not source.flat and not source.projects_itself and (config.family == "mixer" or config.canonical):
        problems.append(
            f"translator: source units of pair {pair} join more than two layers; choose another family than mixer, and "
            "set canonical to false"
        )
    if not source.flat and config.statistics and None in (source.incoming[0].norm, source.outgoing[0].norm):
        problems.append(f"translator.statistics: source blocks of pair {pair} have no batch norm; set it to false")
    if config.context == "network" and not isinstance(architecture, PaperArchitecture):
        problems.append("translator.context: network is known of the paper's network alone; set it to block")
    if config.output == "residual" and not target.flat and target.values not in (1, source.values):
        problems.append(
            f"translator.output: kernels of {target.values} values cannot begin as kernels of {source.values}; set it "
            "to direct"
        )
    if any(name.endswith("running_var") for name, _ in target.flat):
        problems.append(f"pair {pair}: batch norm of a target block is written only where its pair has a layout")
    if (
        config.refinement.steps
        and config.refinement.method == "gauss_newton"
        and (not isinstance(architecture, PaperArchitecture) or target.layers[0].kernel != (3, 3))
    ):
        problems.append(
            "translator.refinement.method: gauss_newton serves the paper's network and blocks of two 3×3 convolutions; "
            "choose newton"
        )
    if config.projects and not can_project(architecture):
        problems.append(
            f"translator.base: blocks of pair {pair} cannot be projected; choose pruned, merged, transported"
        )
    return problems


def can_project(architecture: Architecture) -> bool:
    """Whether least squares give a target block: its units are the source's, or the network is the paper's."""
    source, target = layouts(architecture)
    if isinstance(architecture, PaperArchitecture):
        return True
    if source.flat or target.flat or not (source.projects_itself and target.projects_itself):
        return False
    return source.values == target.values and bool(source.layers[0].kernel) and target.hidden <= source.hidden


def features(
    members: Mapping[str, Tensor], config: TranslatorConfig, architecture: Architecture
) -> tuple[Tensor, Tensor]:
    """What else is known of hidden units [B, H, …] and channels [B, C, …], as `config` allows.

    Statistics: mean β and deviation |γ| that BN gives a pre-activation; for a unit also the first two moments of
    its rectified value. Context: a channel's folded stem kernel and bias, and how strongly the head reads it.
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
    """The biases of `layers` for `count` units or channels, side by side; none of them if none are given."""
    found = [biases[layer] for layer in layers if layer in biases]
    return torch.stack(found, dim=-1) if found else edges.new_zeros(edges.shape[0], count, 0)
