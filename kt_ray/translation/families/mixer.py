"""The paper's translator: an MLP-Mixer over kernels (arXiv 2401.05772; MLP-Mixer, arXiv 2105.01601)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kt_ray.config import MixerOptions, TranslatorConfig
from kt_ray.networks import Architecture
from kt_ray.registry import register
from kt_ray.translation.families.layers import Biases
from kt_ray.translation.units import Units, edge_width, feature_widths, layouts

SIZES: dict[str, dict[str, int]] = {
    "paper": {"width": 128, "depth": 24, "token_hidden": 256, "channel_hidden": 512},
    "small": {"width": 64, "depth": 8, "token_hidden": 128, "channel_hidden": 256},
    "tiny": {"width": 32, "depth": 2, "token_hidden": 64, "channel_hidden": 64},
}


@register.family("mixer", options=MixerOptions)
class Mixer(nn.Module):
    """Tokens are the kernels, those of conv1 and then those of conv2, each in the order [out, in].

    Embedding; layers of token and channel MLPs, each pre-normed and residual; a token map to the target's kernels;
    a linear map to their values. Of the defaults, 72 tokens of 9 values become 36 of 9, with about 4.1 M parameters.
    Folded biases and features ride along: every kernel's token also holds what belongs to its unit and its channel.
    """

    def __init__(self, options: MixerOptions, config: TranslatorConfig, architecture: Architecture) -> None:
        super().__init__()
        sizes = {name: getattr(options, name) or value for name, value in SIZES[options.size].items()}
        width, depth, token_hidden = (sizes[name] for name in ("width", "depth", "token_hidden"))
        source, self.layout = layouts(architecture)
        self.hidden, self.channels = self.layout.hidden, self.layout.channels
        read = 2 * source.hidden * source.channels
        written = self.layout.kernels * self.hidden * self.channels
        self.embed = nn.Linear(edge_width(config, architecture) // 2 + sum(feature_widths(config, architecture)), width)
        self.layers = nn.Sequential(
            *(MixerLayer(read, width, token_hidden, sizes["channel_hidden"], options.dropout) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.token_map = mlp(read, token_hidden, written, options.dropout)
        self.kernels = nn.Linear(width, self.layout.values)
        self.biases = Biases(width, self.hidden, self.channels, len(self.layout.unit), len(self.layout.channel))

    def forward(self, units: Units) -> Units:
        mixed = self.norm(self.layers(self.embed(kernel_tokens(units))))
        mapped: Tensor = self.token_map(mixed.transpose(1, 2)).transpose(1, 2)
        incoming = len(self.layout.incoming) * self.hidden * self.channels
        into, out = self.kernels(mapped).split([incoming, mapped.shape[1] - incoming], dim=1)
        edges = torch.cat(
            [
                into.unflatten(1, (-1, self.hidden, self.channels)),
                out.unflatten(1, (-1, self.channels, self.hidden)).transpose(2, 3),
            ],
            dim=1,
        )  # [B, P, H, C, K]
        return Units(edges.movedim(1, 3), *self.biases(mapped.mean(1)))


class MixerLayer(nn.Module):
    """LayerNorm, MLP along the tokens, residual; LayerNorm, MLP along a token's channels, residual."""

    def __init__(self, tokens: int, width: int, token_hidden: int, channel_hidden: int, dropout: float) -> None:
        super().__init__()
        self.token_norm, self.channel_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.token_mlp = mlp(tokens, token_hidden, tokens, dropout)
        self.channel_mlp = mlp(width, channel_hidden, width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mlp(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        result: Tensor = x + self.channel_mlp(self.channel_norm(x))
        return result


def mlp(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    """Linear, GELU, dropout, linear, dropout."""
    layers: list[Any] = [nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs), nn.Dropout(dropout))


def kernel_tokens(units: Units) -> Tensor:
    """One token a kernel in the paper's order, [B, 2·H·C, 9 + U + V]: conv1's [H, C], then conv2's [C, H].

    Where edges hold a projected block's kernels too, each stands beside the source's of its kind.
    """
    tokens = units.tokens()
    shared = tokens[..., units.edges.shape[3] * units.edges.shape[4] :]
    into = torch.cat([units.edges[:, :, :, 0::2].flatten(3), shared], dim=-1)
    out = torch.cat([units.edges[:, :, :, 1::2].flatten(3), shared], dim=-1).transpose(1, 2)
    return torch.cat([into.flatten(1, 2), out.flatten(1, 2)], dim=1)
