"""Sources of images: published datasets, class directories, arrays, torchvision's datasets.

`register.dataset` takes a function from the options to training and test images, each labelled images or a pair of
tensors or arrays: uint8 images [N, C, H, W] and N integer labels from 0 on.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from kt_ray._io.text import first_line
from kt_ray.config import DatasetConfig, DatasetName, FolderOptions, NpzOptions
from kt_ray.config.zoo import TORCHVISION
from kt_ray.data.images import SPLIT_SEED, LabelledImages
from kt_ray.data.standard import VARIABLE, data_root, load_standard
from kt_ray.errors import DataError
from kt_ray.registry import register

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
ARRAYS = (("train_images", "train_labels", "test_images", "test_labels"), ("x_train", "y_train", "x_test", "y_test"))
Splits = tuple[LabelledImages, LabelledImages]  # training, test


def load_images(config: DatasetConfig) -> Splits:
    """Return the training and test images of the dataset that `config` names.

    Raises DataError if they are not there, or are not of one shape and one set of classes.
    """
    if config.name.startswith(TORCHVISION):
        train, test = _load_torchvision(config.name.removeprefix(TORCHVISION))
    elif config.name in get_args(DatasetName):
        train, test = load_standard(config.name)
    else:
        train, test = (_labelled(config.name, split) for split in register.dataset.make(config.name, config.options))
    for split, images in (("training", train), ("test", test)):
        _check(config.name, split, images)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{config.name}: training images are {_shape(train.images)}, test images {_shape(test.images)}; make them "
            "of one size"
        )
    missing = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
    if missing:
        raise DataError(f"{config.name}: test images have classes {missing[:5]} that no training image has")
    return train, test


def _labelled(name: str, images: Any) -> LabelledImages:
    """Return what a registered dataset gives for a split: labelled images, or uint8 images and integer labels."""
    if isinstance(images, LabelledImages):
        return images
    try:
        pixels, labels = (torch.as_tensor(values) for values in images)
        return LabelledImages(pixels, labels.reshape(-1).long())
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name}: expected two pairs (images, labels), training and test, of tensors or arrays, uint8 N×C×H×W and "
            f"N integers ({first_line(error)})"
        ) from None


def _check(name: str, split: str, images: LabelledImages) -> None:
    """Raise DataError unless `images` are uint8 [N, C, H, W], with as many int64 labels from 0 on."""
    if images.images.dtype != torch.uint8 or images.images.dim() != 4:
        raise DataError(
            f"{name}: {split} images are {images.images.dtype} {_shape(images.images)}, expected uint8 N×C×H×W"
        )
    if not len(images) or len(images.images) != len(images):
        raise DataError(f"{name}: {len(images.images)} {split} images with {len(images)} labels")
    if images.labels.dtype != torch.int64 or images.labels.min() < 0:
        raise DataError(f"{name}: {split} labels must be int64 from 0 on, got {images.labels.dtype}")


@register.dataset("folder", options=FolderOptions)
def _load_folder(options: FolderOptions) -> Splits:
    """Return images in directories named after their classes, `train/CLASS/…` and `test/CLASS/…`, or `CLASS/…`.

    Without `train` and `test`, a share of each class is test images, drawn by the fixed seed.
    """
    root = Path(options.path).expanduser()
    if not root.is_dir():
        raise DataError(f"no directory of images at {root}")
    if (root / "train").is_dir() and (root / "test").is_dir():
        ours, theirs = _classes(root / "train"), _classes(root / "test")
        if ours.keys() != theirs.keys():
            other = sorted(ours.keys() ^ theirs.keys())
            raise DataError(f"{root}: train and test have not the same classes: {', '.join(other[:5])} in one alone")
        return _read_classes(ours, options.channels), _read_classes(theirs, options.channels)
    files = _classes(root)
    images = _read_classes(files, options.channels)
    test = torch.zeros(len(images), dtype=torch.bool)
    generator = torch.Generator().manual_seed(SPLIT_SEED + 1)
    for label in range(len(files)):
        rows = torch.nonzero(images.labels == label).flatten()
        chosen = torch.randperm(len(rows), generator=generator)[: max(1, round(options.test_share * len(rows)))]
        test[rows[chosen]] = True
    return images.take(torch.nonzero(~test).flatten()), images.take(torch.nonzero(test).flatten())


def _classes(root: Path) -> dict[str, list[Path]]:
    """Return the image files under `root` by class, both in the order of names. Raises DataError if there are none."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {
        folder.name: sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES) for folder in folders
    }
    if not any(found.values()):
        raise DataError(f"no images in directories of classes under {root}; expected {root}/CLASS/NAME.png")
    empty = [name for name, files in found.items() if not files]
    if empty:
        raise DataError(f"{root / empty[0]} holds no images ({', '.join(SUFFIXES)}); remove it or fill it")
    return found


def _read_classes(files: dict[str, list[Path]], channels: int | None) -> LabelledImages:
    images, shapes = list[Tensor](), dict[tuple[int, ...], Path]()
    for path in (path for paths in files.values() for path in paths):
        images.append(_read_image(path, channels))
        shapes.setdefault(tuple(images[-1].shape), path)
        if len(shapes) > 1:
            (one, first), (two, second) = shapes.items()
            raise DataError(
                f"{first} is {'×'.join(map(str, one))}, {second} is {'×'.join(map(str, two))} (channels×height×width); "
                "make all images of one size, and set dataset.options.channels to 1 or 3 if they differ in colours"
            )
    labels = [label for label, paths in enumerate(files.values()) for _ in paths]
    return LabelledImages(torch.stack(images), torch.tensor(labels))


def _read_image(path: Path, channels: int | None) -> Tensor:
    """Return the image at `path` as uint8 [C, H, W], grey or RGB. Raises DataError if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            grey = image.mode in ("1", "L", "I", "I;16", "F") if channels is None else channels == 1
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
        raise DataError(f"{path} cannot be read as an image ({first_line(error)})") from None
    return torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], -1).permute(2, 0, 1).contiguous()


@register.dataset("npz", options=NpzOptions)
def _load_npz(options: NpzOptions) -> Splits:
    """Return the arrays `train_images`, `train_labels`, `test_images`, `test_labels` (or `x_train`, …) of a file."""
    path = Path(options.path).expanduser()
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            names = next((names for names in ARRAYS if set(names) <= set(content)), None)
            if names is None:
                raise DataError(f"{path} has the arrays {', '.join(sorted(content))}; expected {', '.join(ARRAYS[0])}")
            arrays = [content[name] for name in names]
    except DataError:
        raise
    except Exception as error:  # a damaged archive raises whatever its bytes lead to
        raise DataError(f"{path} cannot be read as an .npz file ({first_line(error)})") from None
    return _from_arrays(path, *arrays[:2]), _from_arrays(path, *arrays[2:])


def _from_arrays(path: Path, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> LabelledImages:
    """Return images [N, H, W], [N, H, W, C] or [N, C, H, W] with C of 1 or 3, and integer labels [N] or [N, 1]."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(f"{path} holds images of {images.dtype} {images.shape}, expected uint8 of three or four axes")
    if not np.issubdtype(labels.dtype, np.integer) or labels.size != len(images):
        raise DataError(f"{path} holds labels of {labels.dtype} {labels.shape}, expected {len(images)} integers")
    tensor = torch.from_numpy(images)
    if tensor.dim() == 3:
        tensor = tensor.unsqueeze(1)
    elif tensor.shape[1] not in (1, 3) and tensor.shape[3] in (1, 3):
        tensor = tensor.permute(0, 3, 1, 2)
    return LabelledImages(tensor.contiguous(), torch.from_numpy(labels.reshape(-1).astype(np.int64)))


def _load_torchvision(name: str) -> Splits:
    """Return torchvision's dataset `name` under `data_root()`, downloaded there if it is missing."""
    from torchvision import datasets

    kind = getattr(datasets, name) if name in datasets.__all__ else None
    parameters = inspect.signature(kind).parameters if kind is not None else {}
    if kind is None or not {"train", "split"} & parameters.keys():
        known = ", ".join(sorted(_usable(datasets)))
        raise DataError(f"torchvision has no dataset {name!r} of training and test images; it has {known}")
    splits = []
    for train in (True, False):
        choice: dict[str, Any] = {"train": train} if "train" in parameters else {"split": "train" if train else "test"}
        if "download" in parameters:
            choice["download"] = True  # only what is not there
        try:
            part = kind(str(data_root()), **choice)
            pairs = [(np.asarray(image), int(label)) for image, label in part]
        except Exception as error:  # each dataset has its own faults of downloads and files
            raise DataError(
                f"torchvision's {name} is not under {data_root()} and cannot be downloaded or read "
                f"({first_line(error)}); set {VARIABLE} to a directory that holds it"
            ) from None
        if len({image.shape for image, _ in pairs}) > 1:
            raise DataError(f"torchvision's {name} has images of several sizes; write them of one size to a folder")
        images, labels = zip(*pairs, strict=True)
        splits.append(_from_arrays(data_root() / name, np.stack(images), np.array(labels)))
    return splits[0], splits[1]


def _usable(datasets: Any) -> list[str]:
    kinds = ((name, getattr(datasets, name)) for name in datasets.__all__ if name[0].isupper())
    return [name for name, kind in kinds if {"train", "split"} & inspect.signature(kind).parameters.keys()]


def _shape(images: Tensor) -> str:
    return "×".join(map(str, images.shape[1:]))
