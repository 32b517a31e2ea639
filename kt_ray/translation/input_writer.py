"""Block inputs written from the stem's parameters alone, for least squares where no image is carried."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kt_ray.errors import ConfigError
from kt_ray.networks import Architecture, PaperArchitecture, State
from kt_ray.translation.units import fold

WIDTH = 128
COARSE = 2  # positions a side that one written value covers: inputs are smooth
SPREAD = 10.0  # of written values before training, over those of a fresh layer: about that of real inputs


class InputWriter(nn.Module):
    """Stems of the paper's network to `count` inputs of the block behind them, [B, C, H, W, count]; no image is read.

    Each channel is written from its own folded kernel and bias, so a permutation of channels is followed exactly. A
    stem is positively homogeneous in these: they are read at norm 1, and what is written is scaled back.
    Raises ConfigError if the stem is not that of the paper's network.
    """

    def __init__(self, count: int, architecture: Architecture) -> None:
        super().__init__()
        if not isinstance(architecture, PaperArchitecture):
            raise ConfigError("translator.projection.images: written is known of the paper's network alone")
        self.size = architecture.activation_shape[1:]
        self.grid = tuple(-(-side // COARSE) for side in self.size)
        self.layers = nn.Sequential(
            nn.Linear(9 * architecture.image_shape[0] + 1, WIDTH),
            nn.GELU(),
            nn.Linear(WIDTH, WIDTH),
            nn.GELU(),
            nn.Linear(WIDTH, count * math.prod(self.grid)),
        )

    def forward(self, members: State) -> Tensor:
        kernels, biases = fold(members, "stem.conv", "stem.bn")
        values = torch.cat([kernels.flatten(2), biases[..., None]], dim=-1)
        norms: Tensor = values.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        coarse: Tensor = self.layers(values / norms)
        maps = F.interpolate(coarse.reshape(len(values), -1, *self.grid), self.size, mode="bilinear")
        inputs: Tensor = maps.reshape(*values.shape[:2], -1, *self.size).movedim(2, -1)
        return torch.relu(SPREAD * inputs) * norms[..., None, None]
