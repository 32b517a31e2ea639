"""Message passing on a block's neural graph (arXiv 2403.12143): equivariant to both permutations, of any width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kt_ray.config import GraphOptions, TranslatorConfig
from kt_ray.networks import Architecture
from kt_ray.registry import register
from kt_ray.translation.families.axial_transformer import RANK_CODE, EdgeOutput, rank_code
from kt_ray.translation.units import Units, edge_width, feature_widths, target_layout


@register.family("graph", options=GraphOptions)
class Graph(nn.Module):
    """Nodes are hidden units and channels, edges the kernel pairs between them; the target's units are nodes too.

    Every layer sends messages along the edges to both ends and updates the edges from their ends. Target units
    begin at the most important source units where these are in order, else at their mean, with a code of rank.
    """

    def __init__(self, options: GraphOptions, config: TranslatorConfig, architecture: Architecture) -> None:
        super().__init__()
        self.ordered = config.output == "residual" or config.canonical
        self.target_hidden = target_layout(architecture).hidden
        unit, channel = feature_widths(config, architecture)
        self.edge = nn.Linear(edge_width(config, architecture) + unit + channel, options.width)
        self.rank = nn.Linear(RANK_CODE, options.width)
        self.is_target = nn.Parameter(torch.randn(options.width) * 0.1)
        self.layers = nn.ModuleList(GraphLayer(options.width, options.dropout) for _ in range(options.depth))
        self.output = EdgeOutput(options.width, target_layout(architecture))

    def forward(self, units: Units) -> Units:
        tokens, count = units.tokens(), self.target_hidden
        first = torch.arange(count, device=tokens.device) % tokens.shape[1]
        begun = tokens[:, first] if self.ordered else tokens.mean(1, keepdim=True).expand(-1, count, -1, -1)
        marked = self.edge(begun) + self.rank(rank_code(count, tokens))[:, None] + self.is_target
        edges = torch.cat([marked, self.edge(tokens)], dim=1)
        unit, channel = edges.mean(2), edges.mean(1)
        for layer in self.layers:
            edges, unit, channel = layer(edges, unit, channel)
        written: Units = self.output(edges[:, :count])
        return written


class GraphLayer(nn.Module):
    """Messages along edges [B, H, C, width] to nodes [B, H, width] and [B, C, width], then nodes to edges."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.message = _network(3 * width, 2 * width, dropout)
        self.unit, self.channel = _network(2 * width, width, dropout), _network(2 * width, width, dropout)
        self.edge = _network(3 * width, width, dropout)

    def forward(self, edges: Tensor, unit: Tensor, channel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        to_unit, to_channel = self.message(_ends(edges, unit, channel)).chunk(2, dim=-1)
        unit = unit + self.unit(torch.cat([unit, to_unit.mean(2)], dim=-1))
        channel = channel + self.channel(torch.cat([channel, to_channel.mean(1)], dim=-1))
        return edges + self.edge(_ends(edges, unit, channel)), unit, channel


def _ends(edges: Tensor, unit: Tensor, channel: Tensor) -> Tensor:
    """Each edge beside its two ends, [B, H, C, 3·width]."""
    return torch.cat([edges, unit[:, :, None].expand_as(edges), channel[:, None].expand_as(edges)], dim=-1)


def _network(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(inputs),
        nn.Linear(inputs, 2 * outputs),
        nn.GELU(),
        nn.Linear(2 * outputs, outputs),
        nn.Dropout(dropout),
    )
