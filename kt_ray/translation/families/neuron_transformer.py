"""A transformer over hidden units: invariant to the order of the source's units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kt_ray.config import NeuronTransformerOptions, TranslatorConfig
from kt_ray.networks import Architecture
from kt_ray.registry import register
from kt_ray.translation.families.layers import FeedForward, SelfAttention, linear_or_nothing
from kt_ray.translation.units import Units, edge_width, feature_widths, layouts


@register.family("neuron_transformer", options=NeuronTransformerOptions)
class NeuronTransformer(nn.Module):
    """A token is a hidden unit: its incoming kernels, bias and outgoing kernels; one more holds the channels' values.

    Learned queries for the target's units join them (with `output="residual"` added to the tokens of the kept
    units), all attend to each other, and the queries' outputs are the target's units. Source units carry no
    position, so their order cannot matter, and any number of them will do.
    """

    def __init__(self, options: NeuronTransformerOptions, config: TranslatorConfig, architecture: Architecture) -> None:
        super().__init__()
        unit, channel = feature_widths(config, architecture)
        source, self.layout = layouts(architecture)
        self.channels = self.layout.channels
        self.residual = config.output == "residual"
        self.unit = nn.Linear(edge_width(config, architecture) * source.channels + unit, options.width)
        self.channel = nn.Linear(source.channels * channel, options.width) if channel else None
        self.queries = nn.Parameter(torch.randn(self.layout.hidden + 1, options.width))
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    SelfAttention(options.width, options.heads, options.dropout),
                    FeedForward(options.width, options.dropout),
                )
                for _ in range(options.depth)
            )
        )
        self.norm = nn.LayerNorm(options.width)
        self.edge_values = self.channels * self.layout.kernels * self.layout.values
        self.unit_values = len(self.layout.unit)
        self.written = nn.Linear(options.width, self.edge_values + self.unit_values)
        self.shared = linear_or_nothing(options.width, self.channels * len(self.layout.channel))

    def forward(self, units: Units) -> Units:
        batch, available = units.edges.shape[:2]
        sources = self.unit(torch.cat([units.edges.flatten(2), units.unit], dim=-1))  # [B, H, width]
        queries = self.queries.expand(batch, -1, -1)
        count = queries.shape[1] - 1
        if self.residual:
            kept = torch.arange(count, device=sources.device) % available
            queries = torch.cat([queries[:, :count] + sources[:, kept], queries[:, count:]], dim=1)
        tokens = [queries, sources]
        if self.channel is not None:
            tokens.append(self.channel(units.channel.flatten(1))[:, None])
        outputs: Tensor = self.norm(self.layers(torch.cat(tokens, dim=1))[:, : count + 1])
        edges, unit = self.written(outputs[:, :count]).split([self.edge_values, self.unit_values], dim=-1)
        channel = self.shared(outputs[:, count])
        return Units(
            edges.unflatten(-1, (self.channels, self.layout.kernels, self.layout.values)),
            unit,
            channel.reshape(batch, self.channels, len(self.layout.channel)),
        )
