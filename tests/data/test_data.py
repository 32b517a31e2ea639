"""Datasets: fixed splits that never meet, fingerprints, faults in one line."""

import gzip
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kt_ray.config import DatasetConfig
from kt_ray.data import load_dataset
from kt_ray.data import standard as data
from kt_ray.errors import DataError


def test_mnist5k_is_real_digits_in_splits_that_never_meet() -> None:
    dataset = load_dataset(DatasetConfig())
    assert (len(dataset.train), len(dataset.selection), len(dataset.test)) == (3500, 500, 1000)
    assert dataset.image_shape == (1, 28, 28)
    assert dataset.classes == 10
    assert dataset.train.images.dtype == torch.uint8
    rows = [
        {image.numpy().tobytes() for image in dataset.images(split).images} for split in ("train", "selection", "test")
    ]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    everything = torch.cat([dataset.images(split).labels for split in ("train", "selection", "test")])
    assert torch.bincount(everything).tolist() == [500] * 10


def test_the_same_configuration_has_the_same_fingerprint() -> None:
    config = DatasetConfig(train_images=100)
    assert load_dataset(config).fingerprint == load_dataset(config).fingerprint
    assert load_dataset(config).fingerprint != load_dataset(DatasetConfig(train_images=101)).fingerprint


def test_few_training_images_have_all_classes() -> None:
    dataset = load_dataset(DatasetConfig(train_images=1))
    assert dataset.classes == 10
    nothing = dataset.test.take(slice(0, 0))
    assert replace(dataset, test=nothing).classes == 10  # as zoo actors see it


def test_more_selection_images_keep_the_test_images() -> None:
    few, many = load_dataset(DatasetConfig(selection_images=10)), load_dataset(DatasetConfig(selection_images=1000))
    assert torch.equal(few.test.images, many.test.images)
    assert torch.equal(few.selection.images, many.selection.images[:10])


def test_batches_are_floats_between_0_and_1_in_order() -> None:
    dataset = load_dataset(DatasetConfig(train_images=10))
    batches = list(dataset.train.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    images = torch.cat([images for images, _ in batches])
    assert images.dtype == torch.float32
    assert images.max() == 1
    assert torch.equal((images * 255).round().to(torch.uint8), dataset.train.images)


def test_too_many_selection_images() -> None:
    with pytest.raises(DataError, match=r"selection_images=4000 leaves no training image of 4000 in mnist5k"):
        load_dataset(DatasetConfig(selection_images=4000))


def test_a_missing_mnist_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / data.MNIST_FILE).touch()  # so that nothing is downloaded
    with pytest.raises(DataError, match="set KT_RAY_DATA") as error:
        load_dataset(DatasetConfig(name="mnist"))
    assert "\n" not in str(error.value)


def test_debians_fashion_mnist_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(data.VARIABLE, str(tmp_path / "none"))
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path)
    for name, count in (("train", 6), ("t10k", 3)):
        pixels, labels = bytes(range(28)) * 28 * count, bytes(range(count))
        header = struct.pack(">4B3i", 0, 0, 8, 3, count, 28, 28)
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels))
        header = struct.pack(">4Bi", 0, 0, 8, 1, count)
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels))
    dataset = load_dataset(DatasetConfig(name="fashion_mnist", selection_images=2))
    assert (len(dataset.train), len(dataset.selection), len(dataset.test)) == (4, 2, 3)
    assert torch.equal(dataset.test.images[0, 0, 0], torch.arange(28, dtype=torch.uint8))


@pytest.mark.full_data
def test_the_complete_mnist() -> None:
    if not (Path(os.environ.get(data.VARIABLE, "")) / "MNIST" / "raw").is_dir():
        pytest.skip(f"{data.VARIABLE} does not name a directory with MNIST/raw")
    dataset = load_dataset(DatasetConfig(name="mnist", selection_images=5000))
    assert (len(dataset.train), len(dataset.selection), len(dataset.test)) == (55000, 5000, 10000)
