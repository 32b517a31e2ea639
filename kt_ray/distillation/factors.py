"""Paraphraser, translator and factors of Factor Transfer (arXiv 1802.04977, authors' code)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from kt_ray.errors import ConfigError

SLOPE = 0.1  # of every LeakyReLU


def factor_channels(channels: int, rate: float) -> int:
    """round(k · C), the channels of the factors. Raises ConfigError if none is left."""
    factors = round(channels * rate)
    if factors < 1:
        raise ConfigError(
            f"paraphraser.rate={rate} leaves no channel of the teacher's {channels}; "
            f"it must be above {0.5 / channels:g}"
        )
    return factors


def _convolutions(kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], *channels: int) -> nn.Sequential:
    """3×3 convolutions with bias from each of `channels` to the next, each with LeakyReLU 0.1 after it."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [kind(inputs, outputs, 3, padding=1), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """Convolutional autoencoder of a teacher's feature maps [N, C, H, W]; its code are the teacher factors.

    Encoder C → C → round(kC) → round(kC), decoder back by transposed convolutions; no batch normalisation.
    """

    def __init__(self, channels: int, rate: float) -> None:
        super().__init__()
        factors = factor_channels(channels, rate)
        self.encoder = _convolutions(nn.Conv2d, channels, channels, factors, factors)
        self.decoder = _convolutions(nn.ConvTranspose2d, factors, factors, channels, channels)
        self.factors = factors

    def encode(self, maps: Tensor) -> Tensor:
        """Teacher factors [N, round(kC), H, W]."""
        encoded: Tensor = self.encoder(maps)
        return encoded

    def forward(self, maps: Tensor) -> Tensor:
        reconstructed: Tensor = self.decoder(self.encode(maps))
        return reconstructed


class FactorTranslator(nn.Module):
    """Student maps [N, C, H, W] → student factors [N, factors, H, W]; the paraphraser's encoder on C channels."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = _convolutions(nn.Conv2d, channels, channels, factors, factors)

    def forward(self, maps: Tensor) -> Tensor:
        encoded: Tensor = self.encoder(maps)
        return encoded


def normalised(maps: Tensor) -> Tensor:
    """Maps [N, …] flattened per sample to [N, D] and divided by their L2 norm (the paper's equation 3)."""
    return functional.normalize(maps.flatten(1), dim=1)


def factor_distance(student: Tensor, teacher: Tensor, p: float = 1.0) -> Tensor:
    """Mean of |student − teacher|^p over samples and entries of normalised factors [N, D]; authors: p = 1."""
    difference = student - teacher
    if p == 1:
        return difference.abs().mean()
    return difference.square().mean() if p == 2 else difference.abs().clamp_min(1e-12).pow(p).mean()


def reconstruction_error(paraphraser: Paraphraser, maps: Tensor) -> Tensor:
    """L1 between maps and their reconstruction, mean over all entries (the paraphraser's loss)."""
    return functional.l1_loss(paraphraser(maps), maps)


def attention(maps: Tensor) -> Tensor:
    """Attention map: mean over channels of the squares, [N, C, H, W] → [N, H, W] (Zagoruyko 2017, p = 2)."""
    return torch.mean(maps.square(), dim=1)
