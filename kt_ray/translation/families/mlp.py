"""A plain residual MLP over all parameters of a block at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kt_ray.config import MLPOptions, TranslatorConfig
from kt_ray.networks import Architecture
from kt_ray.registry import register
from kt_ray.translation.families.layers import Biases, FeedForward
from kt_ray.translation.units import Units, edge_width, feature_widths, layouts, target_layout


@register.family("mlp", options=MLPOptions)
class MLP(nn.Module):
    """One vector in, one vector out: linear, pre-normed residual layers of GELU networks, linear. No symmetry."""

    def __init__(self, options: MLPOptions, config: TranslatorConfig, architecture: Architecture) -> None:
        super().__init__()
        source = layouts(architecture)[0]
        unit, channel = feature_widths(config, architecture)
        self.layout = target_layout(architecture)
        self.shape = (self.layout.hidden, self.layout.channels, self.layout.kernels, self.layout.values)
        read = source.hidden * (edge_width(config, architecture) * source.channels + unit) + source.channels * channel
        self.embed = nn.Linear(read, options.width)
        self.layers = nn.Sequential(*(FeedForward(options.width, options.dropout) for _ in range(options.depth)))
        self.norm = nn.LayerNorm(options.width)
        self.edges = nn.Linear(options.width, torch.Size(self.shape).numel())
        self.biases = Biases(options.width, *self.shape[:2], len(self.layout.unit), len(self.layout.channel))

    def forward(self, units: Units) -> Units:
        flat = torch.cat([units.edges.flatten(1), units.unit.flatten(1), units.channel.flatten(1)], dim=1)
        hidden: Tensor = self.norm(self.layers(self.embed(flat)))
        return Units(self.edges(hidden).unflatten(1, self.shape), *self.biases(hidden))
