"""Datasets as tensors, with training, selection and test images split by fixed seeds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from kt_ray._io.display import Displayed
from kt_ray.config import SPLITS, DatasetConfig, Split
from kt_ray.data.images import SPLIT_SEED, LabelledImages
from kt_ray.data.sources import load_images
from kt_ray.errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Displayed):
    """Images to train on, to select with, and to report on once. Compared by identity, so what is made of one can be
    kept."""

    config: DatasetConfig
    train: LabelledImages
    selection: LabelledImages
    test: LabelledImages
    fingerprint: str

    def display_title(self) -> str:
        shape = "×".join(map(str, self.image_shape))
        return f"{self.name}: images {shape}, {self.classes} classes, fingerprint {self.fingerprint}"

    def display_rows(self) -> list[dict[str, Any]]:
        return [{"split": split, "images": len(self.images(split))} for split in SPLITS]

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return channels, height, width."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        """Return how many classes there are: few training images may not have all."""
        return int(torch.cat([self.train.labels, self.selection.labels, self.test.labels]).max()) + 1

    def images(self, split: Split) -> LabelledImages:
        return {"train": self.train, "selection": self.selection, "test": self.test}[split]


def load_dataset(config: DatasetConfig) -> Dataset:
    """Return the dataset that `config` names, split by fixed seeds.

    Raises DataError if it can be neither found nor downloaded, or its images are not of one shape and set of classes.
    """
    official_train, official_test = load_images(config)
    if config.selection_images >= len(official_train):
        raise DataError(
            f"dataset.selection_images={config.selection_images} leaves no training image of "
            f"{len(official_train)} in {config.name}; give a smaller number"
        )
    order = torch.randperm(len(official_train), generator=torch.Generator().manual_seed(SPLIT_SEED))
    selection = official_train.take(order[: config.selection_images])
    train = official_train.take(order[config.selection_images :][: config.train_images])
    return Dataset(config, train, selection, official_test, _fingerprint(train, selection, official_test))


def _fingerprint(*splits: LabelledImages) -> str:
    """Return the SHA-256 over shapes, images and labels of the splits in order, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(str(tuple(split.images.shape)).encode())
        digest.update(split.images.contiguous().numpy().data)
        digest.update(split.labels.contiguous().numpy().data)
    return digest.hexdigest()[:16]
