"""CIFAR-10 and CIFAR-100 from small files in the published formats."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from kt_ray.config import DatasetConfig
from kt_ray.data import load_dataset
from kt_ray.errors import DataError

generator = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_RAY_DATA", str(tmp_path))


def pixels(count: int) -> np.ndarray:
    """Records of red, green and blue planes, as both versions store them."""
    return generator.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)


def test_binary_cifar10(tmp_path: Path) -> None:
    root = tmp_path / "cifar-10-batches-bin"
    root.mkdir()
    written = []
    for name in [*(f"data_batch_{part}.bin" for part in range(1, 6)), "test_batch.bin"]:
        labels, planes = np.arange(4, dtype=np.uint8)[:, None], pixels(4)
        np.concatenate([labels, planes], axis=1).tofile(root / name)
        written.append(planes)
    dataset = load_dataset(DatasetConfig(name="cifar10", selection_images=4))
    assert (len(dataset.train), len(dataset.selection), len(dataset.test)) == (16, 4, 4)
    assert dataset.image_shape == (3, 32, 32)
    assert dataset.test.labels.tolist() == [0, 1, 2, 3]
    assert torch.equal(dataset.test.images[1, 2, 3, 5], torch.tensor(written[-1][1, 2 * 1024 + 3 * 32 + 5]))


def test_binary_cifar100_reads_fine_labels(tmp_path: Path) -> None:
    root = tmp_path / "cifar-100-binary"
    root.mkdir()
    for name in ("train.bin", "test.bin"):
        coarse, fine = np.full((4, 1), 19, np.uint8), np.array([[7], [99], [0], [50]], np.uint8)
        np.concatenate([coarse, fine, pixels(4)], axis=1).tofile(root / name)
    assert load_dataset(DatasetConfig(name="cifar100", selection_images=1)).test.labels.tolist() == [7, 99, 0, 50]


def test_torchvision_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    planes = pixels(4)

    def write(name: str, content: dict[str, object]) -> str:
        raw = pickle.dumps(content)
        (root / name).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    sums = {
        name: write(name, {"data": planes, "labels": [3, 1, 4, 1]})
        for name in [*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"]
    }
    meta = write("batches.meta", {"label_names": ["a", "b", "c", "d", "e"]})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[n, s] for n, s in sums.items() if n != "test_batch"])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})
    dataset = load_dataset(DatasetConfig(name="cifar10", selection_images=2))
    assert len(dataset.train) == 18
    assert dataset.test.labels.tolist() == [3, 1, 4, 1]
    assert torch.equal(dataset.test.images, torch.from_numpy(planes.reshape(4, 3, 32, 32)))


def test_a_damaged_binary_file_is_named(tmp_path: Path) -> None:
    root = tmp_path / "cifar-100-binary"
    root.mkdir()
    (root / "train.bin").write_bytes(b"\0" * 3075)
    with pytest.raises(DataError, match=r"train\.bin holds 3075 bytes, expected a multiple of 3074; download it again"):
        load_dataset(DatasetConfig(name="cifar100"))


def test_a_foreign_pickle_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    (root / "data_batch_1").write_bytes(pickle.dumps({"data": pixels(1), "labels": [0]}))
    with pytest.raises(DataError, match=r"cifar10 is not under .* and cannot be downloaded"):
        load_dataset(DatasetConfig(name="cifar10"))
