"""Images with labels, as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SPLIT_SEED = 20240105  # decides which images are selection and, if a dataset has none, test images; never configurable


@dataclass(frozen=True, repr=False)
class LabelledImages:
    """`images` uint8 [N, C, H, W]; `labels` int64 [N]."""

    images: Tensor
    labels: Tensor

    def __repr__(self) -> str:
        return f"{len(self):,} images {tuple(self.images.shape[1:])} on {self.images.device}"

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor | slice) -> LabelledImages:
        """Return the images and labels at `indices`."""
        return LabelledImages(self.images[indices], self.labels[indices])

    def to(self, device: torch.device | str) -> LabelledImages:
        """Return the same on `device`."""
        return LabelledImages(self.images.to(device), self.labels.to(device))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float images in [0, 1] and labels, `size` at a time, in order."""
        for start in range(0, len(self), size):
            yield as_float(self.images[start : start + size]), self.labels[start : start + size]


def as_float(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)
