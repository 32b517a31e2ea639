"""Attention along hidden units and along channels: both permutations of a block are built in, and any width goes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kt_ray.config import AxialTransformerOptions, TranslatorConfig
from kt_ray.networks import Architecture
from kt_ray.registry import register
from kt_ray.translation.families.layers import FeedForward, SelfAttention, linear_or_nothing
from kt_ray.translation.units import Layout, Units, edge_width, feature_widths, target_layout


@register.family("axial_transformer", options=AxialTransformerOptions)
class AxialTransformer(nn.Module):
    """A token is what joins a hidden unit with a channel, [B, H, C]: both kernels and what belongs to either end.

    The target's tokens join the source's along the hidden axis. With `output="residual"` or a canonical order they
    are those of the most important source units, else the source's mean; a fixed code of their rank tells them
    apart. No parameter depends on a width, so a translator of one architecture serves others of its pair.
    """

    def __init__(self, options: AxialTransformerOptions, config: TranslatorConfig, architecture: Architecture) -> None:
        super().__init__()
        self.ordered = config.output == "residual" or config.canonical
        self.target_hidden = target_layout(architecture).hidden
        features = edge_width(config, architecture) + sum(feature_widths(config, architecture))
        self.source = nn.Linear(features, options.width)
        self.target = nn.Linear(features, options.width)
        self.rank = nn.Linear(RANK_CODE, options.width)
        self.layers = nn.Sequential(
            *(AxialLayer(options.width, options.heads, options.dropout) for _ in range(options.depth))
        )
        self.output = EdgeOutput(options.width, target_layout(architecture))

    def forward(self, units: Units) -> Units:
        tokens, count = units.tokens(), self.target_hidden
        first = torch.arange(count, device=tokens.device) % tokens.shape[1]
        begun = tokens[:, first] if self.ordered else tokens.mean(1, keepdim=True).expand(-1, count, -1, -1)
        target = self.target(begun) + self.rank(rank_code(count, tokens))[:, None]
        mixed = self.layers(torch.cat([target, self.source(tokens)], dim=1))
        written: Units = self.output(mixed[:, :count])
        return written


class AxialLayer(nn.Module):
    """Self-attention along channels, self-attention along hidden units, feed-forward: [B, H, C, width] throughout."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.channels = SelfAttention(width, heads, dropout)
        self.hidden = SelfAttention(width, heads, dropout)
        self.feed_forward = FeedForward(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channels(x)
        x = self.hidden(x.transpose(1, 2)).transpose(1, 2)
        result: Tensor = self.feed_forward(x)
        return result


class EdgeOutput(nn.Module):
    """Tokens [B, H, C, width] as target units: edges from each token, biases from their means along either axis.

    `silent` ones write zeros until they have learned better.
    """

    def __init__(self, width: int, layout: Layout, *, silent: bool = False) -> None:
        super().__init__()
        self.shape = (layout.kernels, layout.values)
        self.norm = nn.LayerNorm(width)
        self.edges = nn.Linear(width, layout.kernels * layout.values)
        self.unit = linear_or_nothing(width, len(layout.unit))
        self.channel = linear_or_nothing(width, len(layout.channel))
        for parameter in [*self.edges.parameters(), *self.unit.parameters(), *self.channel.parameters()] * silent:
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Units:
        x = self.norm(x)
        return Units(self.edges(x).unflatten(-1, self.shape), self.unit(x.mean(2)), self.channel(x.mean(1)))


RANK_CODE = 8


def rank_code(count: int, like: Tensor) -> Tensor:
    """Sines and cosines of the ranks 0 … count − 1, [count, RANK_CODE]: any number of ranks, no parameter for each."""
    frequencies = torch.logspace(0, -1.5, RANK_CODE // 2, device=like.device) * torch.pi / 2
    angles = torch.arange(count, device=like.device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
