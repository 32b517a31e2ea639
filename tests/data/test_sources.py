"""People's own images: class directories, arrays, torchvision's datasets; faults in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from kt_ray.config import DatasetConfig, ZooConfig
from kt_ray.data import Dataset, LabelledImages, load_dataset
from kt_ray.errors import DataError
from kt_ray.zoo.store import ZooStore

Write = Callable[..., Path]
generator = np.random.default_rng(0)


def write_image(path: Path, size: tuple[int, ...] = (8, 6, 3)) -> np.ndarray:
    """A PNG of random pixels, of `size` height, width and, for colours, 3; returns the pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = generator.integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of six training and two test images."""
    for split, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                write_image(tmp_path / "images" / split / name / f"{number}.png")
    return tmp_path / "images"


def load(name: str, selection_images: int = 2, **options: object) -> Dataset:
    return load_dataset(DatasetConfig(name=name, options=options, selection_images=selection_images))


class TestFolder:
    def test_train_and_test_directories(self, folder: Path) -> None:
        pixels = write_image(folder / "test" / "dog" / "0.png")
        dataset = load("folder", path=str(folder))
        assert (len(dataset.train), len(dataset.selection), len(dataset.test)) == (10, 2, 4)
        assert (dataset.image_shape, dataset.classes) == ((3, 8, 6), 2)
        assert dataset.test.labels.tolist() == [0, 0, 1, 1]
        assert torch.equal(dataset.test.images[2], torch.from_numpy(pixels).permute(2, 0, 1))
        assert load("folder", path=str(folder)).fingerprint == dataset.fingerprint

    def test_classes_alone_are_split_by_a_fixed_seed(self, folder: Path) -> None:
        dataset = load("folder", path=str(folder / "train"), test_share=0.34)
        assert (len(dataset.train), len(dataset.selection), len(dataset.test)) == (6, 2, 4)
        assert torch.bincount(dataset.test.labels).tolist() == [2, 2]
        again = load("folder", path=str(folder / "train"), test_share=0.34)
        assert again.fingerprint == dataset.fingerprint

    def test_grey_images_stay_grey_or_are_made_so(self, folder: Path) -> None:
        assert load("folder", path=str(folder), channels=1).image_shape == (1, 8, 6)
        for path in folder.rglob("*.png"):
            write_image(path, (8, 6))
        assert load("folder", path=str(folder)).image_shape == (1, 8, 6)
        assert load("folder", path=str(folder), channels=3).image_shape == (3, 8, 6)

    @pytest.mark.parametrize(
        ("spoil", "told"),
        [
            (lambda root: root.rename(root.with_name("moved")), "no directory of images at"),
            (lambda root: [path.unlink() for path in root.rglob("*.png")], "no images in directories of classes"),
            (lambda root: [path.unlink() for path in (root / "test" / "cat").iterdir()], "cat holds no images"),
            (lambda root: (root / "test" / "cat").rename(root / "test" / "fox"), "not the same classes: cat, fox"),
            (lambda root: write_image(root / "train" / "cat" / "9.png", (8, 7, 3)), "9.png is 3×8×7"),
            (lambda root: write_image(root / "train" / "cat" / "9.png", (8, 6)), "dataset.options.channels"),
            (lambda root: (root / "train" / "dog" / "9.png").write_bytes(b"no image"), "9.png cannot be read"),
            (
                lambda root: [write_image(path, (4, 6, 3)) for path in (root / "test").rglob("*.png")],
                "training images are 3×8×6, test images 3×4×6",
            ),
        ],
    )
    def test_faults(self, folder: Path, spoil: Callable[[Path], object], told: str) -> None:
        spoil(folder)
        with pytest.raises(DataError) as error:
            load("folder", path=str(folder))
        assert told in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_zoo_is_the_same_if_its_images_are_moved(self, folder: Path, tmp_path: Path) -> None:
        store = ZooStore(str(tmp_path / "zoo"))
        store.create(ZooConfig(), "basic_to_simple", load("folder", path=str(folder)))
        moved = folder.rename(tmp_path / "moved")
        assert store.create(ZooConfig(), "basic_to_simple", load("folder", path=str(moved))) == []


class TestNpz:
    @pytest.mark.parametrize("shape", [(9, 4, 5), (9, 4, 5, 3), (9, 3, 4, 5), (9, 4, 5, 1)])
    @pytest.mark.parametrize("names", ["{split}_images {split}_labels", "x_{split} y_{split}"])
    def test_arrays(self, tmp_path: Path, shape: tuple[int, ...], names: str) -> None:
        arrays = {}
        for split in ("train", "test"):
            images, labels = names.format(split=split).split()
            arrays[images] = generator.integers(0, 256, shape, dtype=np.uint8)
            arrays[labels] = np.arange(9, dtype=np.uint8) % 3
        np.savez_compressed(tmp_path / "data.npz", **arrays)
        dataset = load("npz", path=str(tmp_path / "data.npz"))
        channels = 3 if 3 in shape else 1
        assert (dataset.image_shape, dataset.classes, len(dataset.test)) == ((channels, 4, 5), 3, 9)
        test = arrays[names.format(split="test").split()[0]]
        expected = (
            test.reshape(9, 4, 5, 1).transpose(0, 3, 1, 2)
            if channels == 1
            else (test if shape[1] == 3 else test.transpose(0, 3, 1, 2))
        )
        assert np.array_equal(dataset.test.images.numpy(), expected)

    @pytest.mark.parametrize(
        ("changed", "told"),
        [
            ({"train_images": np.zeros((4, 2, 2), np.float32)}, "expected uint8"),
            ({"train_labels": np.zeros(3, np.int64)}, "expected 4 integers"),
            ({"train_labels": np.array([0, 1, -1, 1])}, "from 0 on"),
            ({"test_labels": np.array([0, 1, 2, 7])}, r"test images have classes [2, 7]"),
            ({"test_images": np.zeros((0, 2, 2), np.uint8), "test_labels": np.zeros(0, np.int64)}, "0 test images"),
            ({"train_images": np.array([{}], dtype=object)}, "cannot be read"),
            ({"train_images": None}, "has the arrays test_images"),
        ],
    )
    def test_faults(self, tmp_path: Path, changed: dict[str, np.ndarray | None], told: str) -> None:
        arrays = {f"{split}_images": np.zeros((4, 2, 2), np.uint8) for split in ("train", "test")}
        arrays |= {f"{split}_labels": np.arange(4) % 2 for split in ("train", "test")}
        written = {name: value for name, value in (arrays | changed).items() if value is not None}
        np.savez(tmp_path / "data.npz", **written)
        with pytest.raises(DataError) as error:
            load("npz", selection_images=1, path=str(tmp_path / "data.npz"))
        assert told in str(error.value)
        assert "\n" not in str(error.value)

    def test_what_is_no_archive(self, tmp_path: Path) -> None:
        for content in (b"", b"PK\x03\x04 no archive"):
            (tmp_path / "data.npz").write_bytes(content)
            with pytest.raises(DataError):
                load("npz", path=str(tmp_path / "data.npz"))


class TestTorchvision:
    def test_a_dataset_of_torchvision(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """MNIST by torchvision is MNIST: the same images, in the same splits."""
        raw = tmp_path / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for part, count in (("train", 6), ("t10k", 4)):
            header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (count, 28, 28))
            (raw / f"{part}-images-idx3-ubyte").write_bytes(header + bytes(range(256))[: 28 * 7] * 4 * count)
            header = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big")
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + bytes(number % 2 for number in range(count)))
        monkeypatch.setenv("KT_RAY_DATA", str(tmp_path))
        dataset, named = load("torchvision:FashionMNIST"), load("fashion_mnist")
        assert dataset.fingerprint == named.fingerprint
        assert dataset.name == "torchvision:FashionMNIST"

    @pytest.mark.parametrize("name", ["Nothing", "VisionDataset", "wrap_dataset_for_transforms_v2"])
    def test_what_it_has_not(self, name: str) -> None:
        with pytest.raises(DataError, match=r"has no dataset .*; it has .*MNIST"):
            load(f"torchvision:{name}")


class TestConfiguration:
    @pytest.mark.parametrize(
        "content",
        [
            {"name": "cifar"},
            {"name": "folder"},
            {"name": "folder", "options": {"path": "x", "size": 3}},
            {"name": "npz", "options": {"path": ""}},
            {"name": "mnist", "options": {"path": "x"}},
        ],
    )
    def test_faults(self, content: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            DatasetConfig.model_validate(content)

    def test_what_has_no_options_is_written_as_before(self) -> None:
        assert DatasetConfig().model_dump() == {"name": "mnist5k", "selection_images": 500, "train_images": None}
        config = DatasetConfig(name="npz", options={"path": "x"})
        assert DatasetConfig.model_validate(config.model_dump()) == config
        assert len({config, DatasetConfig(name="npz", options={"path": "x"})}) == 1


def test_images_of_a_source_are_uint8() -> None:
    from kt_ray.data import sources

    wrong = LabelledImages(torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(DataError, match="expected uint8"):
        sources._check("theirs", "training", wrong)
