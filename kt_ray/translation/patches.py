"""Patches of maps that convolutions read, as matrices, and maps of patches summed into their places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kt_ray.networks.layouts import Layer


def read_by(x: Tensor, layer: Layer) -> tuple[Tensor, tuple[int, int]]:
    """Return the patches of [B, N, C, H, W] that a convolution reads, [B, C·K, L·N]; its output's height and width."""
    height, width = (
        (size + 2 * layer.padding - kernel) // layer.stride + 1
        for size, kernel in zip(x.shape[-2:], layer.kernel, strict=True)
    )
    found = F.unfold(x.flatten(0, 1), layer.kernel, padding=layer.padding, stride=layer.stride)
    return found.reshape(*x.shape[:2], *found.shape[1:]).permute(0, 2, 3, 1).flatten(2), (height, width)


def unfold(x: Tensor, stride: int) -> Tensor:
    """3×3 patches, padded by 1, of [B, C, H, W, N]: [B, C·9, L·N] with L positions an image."""
    patches: Tensor = _Unfold.apply(x, stride)
    return patches


def fold_patches(patches: Tensor, stride: int, shape: Sequence[int]) -> Tensor:
    """Return maps of `shape`, (B, C, H, W, N), with patches summed into their places: the transpose of `unfold`."""
    maps: Tensor = _Fold.apply(patches, stride, torch.Size(shape))
    return maps


class _Unfold(torch.autograd.Function):
    """Gathers patches. Autograd's own gradient of nine slices would fill nine maps with zeros first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        ctx.stride, ctx.shape = stride, x.shape
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        return torch.stack(_shifted(padded, stride), dim=2).flatten(3).flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return fold_patches(gradient, ctx.stride, ctx.shape), None


class _Fold(torch.autograd.Function):
    """Adds patches up where they came from: the transpose of `_Unfold`, and its gradient the other's value."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, stride: int, shape: torch.Size) -> Tensor:
        ctx.stride = stride
        batch, channels, height, width, images = shape
        padded = patches.new_zeros(batch, channels, height + 2, width + 2, images)
        places = _shifted(padded, stride)
        parts = patches.reshape(batch, channels, 9, *places[0].shape[2:]).unbind(2)
        for place, part in zip(places, parts, strict=True):
            place += part
        return padded[:, :, 1:-1, 1:-1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return unfold(gradient, ctx.stride), None, None


def _shifted(padded: Tensor, stride: int) -> list[Tensor]:
    """Views of [B, C, H + 2, W + 2, N], one for each place in a 3×3 kernel."""
    height, width = padded.shape[2] - 2, padded.shape[3] - 2
    return [
        padded[:, :, row : row + height : stride, column : column + width : stride]
        for row in range(3)
        for column in range(3)
    ]
