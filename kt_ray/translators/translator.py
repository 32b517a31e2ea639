"""The interface of translators, whatever their family."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kt_ray.config import TranslatorConfig
from kt_ray.networks import Architecture, State
from kt_ray.translators import tokens
from kt_ray.translators.layers import linear_or_nothing
from kt_ray.translators.tokens import LAYOUTS, Units


class Translator(nn.Module):
    """Source blocks to target blocks, many at once.

    `body` is the family's network, from `Units` to `Units`. With `output="residual"` (as neural functionals and
    neural graphs do), its output, times a small learned scale for each tensor, is added to the pruned block, and
    the source's units come to it in order of importance, so that its first target units are the kept ones.
    """

    def __init__(self, body: nn.Module, config: TranslatorConfig, architecture: Architecture) -> None:
        super().__init__()
        self.body = body
        self.config = config
        self.architecture = architecture
        self.layout = LAYOUTS[architecture.pair]
        self.target_hidden = tokens.target_hidden(architecture)
        if config.output == "residual":
            self.scale = nn.Parameter(torch.full((self.layout.kernels + 2,), 0.1))

    def forward(self, source: State) -> State:
        """A stack of source blocks [B, …], BN buffers included, to the stack of target blocks [B, …]."""
        units = tokens.read(source, self.config.batch_norm)
        if self.config.output == "direct":
            return tokens.write(self.body(units), self.layout)
        units = units.take(tokens.importance_order(source, self.config.batch_norm))
        base = tokens.pruned_units(units, self.layout, self.target_hidden)
        change: Units = self.body(units)
        return tokens.write(
            Units(
                base.edges + self.scale[:-2, None] * change.edges,
                base.unit + self.scale[-2] * change.unit,
                base.channel + self.scale[-1] * change.channel,
            ),
            self.layout,
        )


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
