"""The data of plain training loops: torchvision's images one by one, and endless epochs of a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms.functional import to_pil_image

from kt_ray.data import LabelledImages

Batch = TypeVar("Batch")


class PILImages(TorchDataset[tuple[Tensor, int]]):
    """Images as torchvision's own datasets give them: a PIL image made for each, transformed on demand."""

    def __init__(self, data: LabelledImages, transform: Callable[[Any], Tensor]) -> None:
        self.images, self.labels, self.transform = data.images, data.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(to_pil_image(self.images[index])), self.labels[index]


def forever(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Yield the batches of `loader`, epoch after epoch."""
    while True:
        yield from loader
