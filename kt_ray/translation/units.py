"""Blocks as hidden units × channels, the view that every family of translators reads and writes.

`read` turns a stack of source blocks into `Units`, with BN dropped (the paper's) or folded; `write` turns `Units`
into the parameters of a target block. `features` are what a translator may know beside the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kt_ray.config import PairName, TranslatorConfig
from kt_ray.networks import Architecture, State

BatchNorm = Literal["dropped", "folded"]
EPSILON = 1e-5  # of every nn.BatchNorm2d in `networks`


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
    """The tensors of a target block's units: weights [H, C, …] into them, [C, H, …] out of them, and biases."""

    incoming: tuple[str, ...]
    outgoing: tuple[str, ...]
    unit: tuple[str, ...] = ()
    channel: tuple[str, ...] = ()
    kernel: tuple[int, ...] = (3, 3)
    rectified: bool = True  # whether a ReLU follows the sum of input and last layer

    @property
    def kernels(self) -> int:
        """P: kernels that join a unit with a channel."""
        return len(self.incoming) + len(self.outgoing)

    @property
    def values(self) -> int:
        """K: values of one kernel."""
        return math.prod(self.kernel)


_CONVOLUTIONS = (("conv1.weight",), ("conv2.weight",))
_LINEAR = (("linear1.weight",), ("linear2.weight",), ("linear1.bias",), ("linear2.bias",))
_ATTENTION = (("query.weight", "key.weight", "value.weight"), ("projection.weight",))
LAYOUTS: dict[PairName, Layout] = {
    "basic_to_simple": Layout(*_CONVOLUTIONS),
    "basic_to_biased": Layout(*_CONVOLUTIONS, ("conv1.bias",), ("conv2.bias",)),
    "basic_to_mlp": Layout(*_LINEAR, kernel=()),
    "basic_to_attention": Layout(*_ATTENTION, kernel=(1, 1), rectified=False),
}


def target_hidden(architecture: Architecture) -> int:
    """Hidden units of the target block."""
    with torch.device("meta"):
        return len(architecture.target_block().state_dict()[LAYOUTS[architecture.pair].incoming[0]])


def to_units(block: Mapping[str, Tensor], layout: Layout) -> Units:
    """A stack of blocks in the view of `layout`."""
    edges = [block[name].flatten(3) if layout.kernel else block[name][..., None] for name in layout.incoming]
    edges += [
        (block[name].flatten(3) if layout.kernel else block[name][..., None]).transpose(1, 2)
        for name in layout.outgoing
    ]
    stacked = torch.stack(edges, dim=3)
    return Units(stacked, _columns(block, layout.unit, stacked, 1), _columns(block, layout.channel, stacked, 2))


def write(units: Units, layout: Layout) -> State:
    """The inverse of `to_units`."""
    batch, hidden, channels = units.edges.shape[:3]
    state = {}
    for number, name in enumerate(layout.incoming + layout.outgoing):
        edge = units.edges[:, :, :, number]
        edge = edge.transpose(1, 2) if name in layout.outgoing else edge
        rows, columns = (channels, hidden) if name in layout.outgoing else (hidden, channels)
        state[name] = edge.reshape(batch, rows, columns, *layout.kernel)
    state |= {name: units.unit[..., number] for number, name in enumerate(layout.unit)}
    return state | {name: units.channel[..., number] for number, name in enumerate(layout.channel)}


def read(source: Mapping[str, Tensor], batch_norm: BatchNorm) -> Units:
    """A stack of source blocks as units. Folded: U = V = 1, the biases; dropped: the raw kernels, U = V = 0."""
    if batch_norm == "dropped":
        return to_units(source, Layout(*_CONVOLUTIONS))
    return to_units(fold_batch_norm(source), LAYOUTS["basic_to_biased"])


def fold_batch_norm(source: Mapping[str, Tensor]) -> State:
    """The source block without BN: convolutions with biases that compute the same in evaluation mode."""
    folded: State = {}
    for number in (1, 2):
        weight, bias = fold(source, f"conv{number}.weight", f"bn{number}")
        folded |= {f"conv{number}.weight": weight, f"conv{number}.bias": bias}
    return folded


def fold(state: Mapping[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Kernels [B, out, in, …] and biases [B, out] of a convolution with the BN after it folded in."""
    scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + EPSILON)
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return state[convolution] * scale[:, :, None, None, None], bias


def importance(source: Mapping[str, Tensor], batch_norm: BatchNorm) -> Tensor:
    """Return the contribution of each hidden unit to the output, [B, H].

    Folded: expected power of the rectified unit, whose pre-activation BN gives mean β and deviation |γ|, times its
    squared outgoing norm. Dropped: squared incoming times squared outgoing norm.
    """
    if batch_norm == "dropped":
        incoming = source["conv1.weight"].square().flatten(2).sum(-1)
        return incoming * source["conv2.weight"].transpose(1, 2).square().flatten(2).sum(-1)
    outgoing = fold_batch_norm(source)["conv2.weight"].transpose(1, 2).square().flatten(2).sum(-1)
    return rectified_moments(source["bn1.bias"], source["bn1.weight"].abs())[1] * outgoing


def rectified_moments(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """First and second moment of ReLU of a Gaussian with this mean and deviation, elementwise."""
    deviation = deviation.clamp_min(1e-6)
    ratio = mean / deviation
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + torch.erf(ratio / math.sqrt(2)))
    first = mean * below + deviation * density
    return first, (mean.square() + deviation.square()) * below + mean * deviation * density


def importance_order(source: Mapping[str, Tensor], batch_norm: BatchNorm) -> Tensor:
    """Indices of the hidden units, most important first, int64 [B, H]."""
    return importance(source, batch_norm).argsort(dim=1, descending=True, stable=True)


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
    stem = 9 * architecture.image_shape[0] + 1
    probed = 2 * tells_base(config, architecture)
    return folded + 4 * statistics + probed, folded + 2 * statistics + (stem + 1) * context + probed


def edge_width(config: TranslatorConfig, architecture: Architecture) -> int:
    """Values that join a source unit with a channel, as the families are given them: both kernels, and the base's."""
    layout = LAYOUTS[architecture.pair]
    return 18 + tells_base(config, architecture) * layout.kernels * layout.values


def tells_base(config: TranslatorConfig, architecture: Architecture) -> bool:
    """Return whether the family is given the projected block: its units are chosen source units."""
    return config.projects and LAYOUTS[architecture.pair].values > 1


def features(members: Mapping[str, Tensor], config: TranslatorConfig) -> tuple[Tensor, Tensor]:
    """Return further features of hidden units [B, H, …] and channels [B, C, …], as `config` allows.

    Statistics: mean β and deviation |γ| that BN gives a pre-activation; for a unit also the first two moments of
    its rectified value. Context: a channel's folded stem kernel and bias, and how strongly the head reads it.
    """
    unit: list[Tensor] = []
    channel: list[Tensor] = []
    if config.statistics:
        mean, deviation = members["bn1.bias"], members["bn1.weight"].abs()
        unit += [mean, deviation, *rectified_moments(mean, deviation)]
        channel += [members["bn2.bias"], members["bn2.weight"].abs()]
    if config.context == "network":
        kernel, bias = fold(members, "stem.conv.weight", "stem.bn")
        head, _ = fold(members, "head.conv.weight", "head.bn")
        channel += [*kernel.flatten(2).unbind(-1), bias, head.flatten(2).square().sum(1).sqrt()]
    first, second = members["bn1.bias"], members["bn2.bias"]
    return tuple(  # type: ignore[return-value]
        torch.stack(values, dim=-1) if values else like.new_zeros(*like.shape, 0)
        for values, like in ((unit, first), (channel, second))
    )


def _columns(block: Mapping[str, Tensor], names: tuple[str, ...], edges: Tensor, axis: int) -> Tensor:
    """The vectors `names` of the block side by side, [B, n, len(names)]."""
    if names:
        return torch.stack([block[name] for name in names], dim=-1)
    return edges.new_zeros(edges.shape[0], edges.shape[axis], 0)
