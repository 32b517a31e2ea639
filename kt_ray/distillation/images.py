"""Shuffled, cropped and flipped batches made on the device from tensors; no loader, no workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kt_ray.config import FitConfig
from kt_ray.data import LabelledImages, as_float

EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Batch:
    """`images` float [B, C, H, W] in [0, 1]; `indices` int64 [B] of the set; `flipped` bool [B]."""

    images: Tensor
    labels: Tensor
    indices: Tensor
    flipped: Tensor


def batches(data: LabelledImages, config: FitConfig, seed: int, epoch: int) -> Iterator[Batch]:
    """One epoch over `data` in an order, crops and flips that `seed` and `epoch` alone decide, on any device."""
    count, device = len(data), data.images.device
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order = torch.randperm(count, generator=generator).to(device)
    flips = (torch.rand(count, generator=generator) < 0.5 if config.flip else torch.zeros(count).bool()).to(device)
    shifts = torch.randint(0, 2 * config.crop + 1, (2, count), generator=generator).to(device)
    for start in range(0, count, config.batch_size):
        chosen = slice(start, start + config.batch_size)
        indices = order[chosen]
        images = data.images[indices]
        if config.crop:
            images = cropped(images, config.crop, shifts[0, chosen], shifts[1, chosen])
        if config.flip:
            images = flipped(images, flips[chosen])
        yield Batch(as_float(images), data.labels[indices], indices, flips[chosen])


def flipped(images: Tensor, which: Tensor) -> Tensor:
    """`images` [B, C, H, W], those of `which` (bool [B]) mirrored left to right."""
    return torch.where(which.view(-1, 1, 1, 1), images.flip(-1), images)


def cropped(images: Tensor, padding: int, down: Tensor, right: Tensor) -> Tensor:
    """`images` [B, C, H, W] padded with zeros all around and cut to their size from row `down` and column `right` [B].

    `down` and `right` are from 0 to 2·`padding`; at `padding` the image comes out as it was.
    """
    count, channels, height, width = images.shape
    padded = functional.pad(images, (padding, padding, padding, padding))
    rows = down.view(-1, 1) + torch.arange(height, device=images.device)
    columns = right.view(-1, 1) + torch.arange(width, device=images.device)
    padded_width = width + 2 * padding
    positions = (rows.unsqueeze(2) * padded_width + columns.unsqueeze(1)).view(count, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, positions).view(images.shape)
