"""Layers that several families share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def linear_or_nothing(inputs: int, outputs: int) -> nn.Module:
    """A linear layer; for no outputs one that cuts all features off (an empty nn.Linear warns)."""
    return nn.Linear(inputs, outputs) if outputs else Nothing()


class Nothing(nn.Module):
    """[..., n] to [..., 0]."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :0]


class SelfAttention(nn.Module):
    """Pre-normed multi-head self-attention with its residual: [..., T, width] to the same shape."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).transpose(-4, -2)  # [..., heads, 3, T, d]
        query, key, value = heads.unbind(-3)
        attended = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = x + self.dropout(self.out(attended.transpose(-3, -2).flatten(-2)))
        return result


class FeedForward(nn.Module):
    """Pre-normed two-layer GELU network, four times as wide inside, with its residual."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.layers(x)
        return result


class Biases(nn.Module):
    """The target's unit and channel values from one vector: [B, width] to [B, H, U] and [B, C, V]."""

    def __init__(self, width: int, hidden: int, channels: int, unit: int, channel: int) -> None:
        super().__init__()
        self.shapes = (hidden, unit), (channels, channel)
        self.linear = linear_or_nothing(width, hidden * unit + channels * channel)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        (hidden, unit), (channels, channel) = self.shapes
        first, second = self.linear(pooled).split([hidden * unit, channels * channel], dim=1)
        batch = pooled.shape[0]  # `len` would fix the batch of an exported translator
        return first.reshape(batch, hidden, unit), second.reshape(batch, channels, channel)
