"""Blocks as hidden units × channels, the view that every family of translators reads and writes.

`read` turns a stack of source blocks into `Units`, with BN dropped (the paper's) or folded; `write` turns `Units`
into the parameters of a target block. Order of importance and the pruned block come from the same view.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kt_ray.config import PairName
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


@dataclass(frozen=True)
class Layout:
    """Where a target block keeps its units: weights [H, C, …] into them, [C, H, …] out of them, and biases."""

    incoming: tuple[str, ...]
    outgoing: tuple[str, ...]
    unit: tuple[str, ...] = ()
    channel: tuple[str, ...] = ()
    kernel: tuple[int, ...] = (3, 3)

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
    "basic_to_attention": Layout(*_ATTENTION, kernel=(1, 1)),
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
    folded = {}
    for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
        scale = source[f"{norm}.weight"] / torch.sqrt(source[f"{norm}.running_var"] + EPSILON)
        folded[f"{conv}.weight"] = source[f"{conv}.weight"] * scale[:, :, None, None, None]
        folded[f"{conv}.bias"] = source[f"{norm}.bias"] - source[f"{norm}.running_mean"] * scale
    return folded


def importance(source: Mapping[str, Tensor], batch_norm: BatchNorm) -> Tensor:
    """How much each hidden unit contributes to the output, [B, H].

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


def pruned_units(units: Units, layout: Layout, hidden: int) -> Units:
    """Target units straight from source `units`, which are in order of importance: the first `hidden` of them.

    A convolution target keeps kernels (and biases where it has any). A target without kernels sees the kernels'
    sums, the response to a constant image; units it has beyond the source's repeat them, with nothing going out.
    Attention passes its own position on: queries, keys and values are the identity, and its projection the block's
    response with every unit half open.
    """
    batch, available, channels = units.edges.shape[:3]
    biases = units.unit[..., :1], units.channel[..., :1]
    if layout.kernels == 4:
        sums = units.edges.sum(-1)  # [B, H, C, 2]
        response = 0.5 * torch.einsum("bhi,bho->bio", sums[..., 0], sums[..., 1])  # input × output channels
        identity = torch.eye(channels, device=sums.device).expand(batch, -1, -1)
        edges = torch.stack([identity, identity, identity, response], dim=3)[..., None]
        return Units(edges, edges.new_zeros(batch, channels, 0), edges.new_zeros(batch, channels, 0))
    chosen = torch.arange(hidden, device=units.edges.device) % available
    edges = units.edges[:, chosen] if layout.values > 1 else units.edges[:, chosen].sum(-1, keepdim=True)
    edges = torch.cat([edges[:, :available], edges[:, available:] * edges.new_tensor([1.0, 0.0])[:, None]], dim=1)
    unit, channel = (
        (biases[0][:, chosen], biases[1])
        if biases[0].shape[-1]
        else (edges.new_zeros(batch, hidden, 1), edges.new_zeros(batch, channels, 1))
    )
    return Units(edges, unit[..., : len(layout.unit)], channel[..., : len(layout.channel)])


def pruned_block(source: Mapping[str, Tensor], architecture: Architecture, batch_norm: BatchNorm = "folded") -> State:
    """The target block that keeps the source's most important hidden units: a baseline, and what residual starts at."""
    units = read(source, batch_norm).take(importance_order(source, batch_norm))
    layout = LAYOUTS[architecture.pair]
    return write(pruned_units(units, layout, target_hidden(architecture)), layout)


def _columns(block: Mapping[str, Tensor], names: tuple[str, ...], edges: Tensor, axis: int) -> Tensor:
    """The vectors `names` of the block side by side, [B, n, len(names)]."""
    if names:
        return torch.stack([block[name] for name in names], dim=-1)
    return edges.new_zeros(edges.shape[0], edges.shape[axis], 0)
