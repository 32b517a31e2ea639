"""Crops and flips on tensors, in an order that seed and epoch decide."""

from __future__ import annotations

import torch

from kt_ray.config import FitConfig
from kt_ray.data import Dataset, LabelledImages
from kt_ray.distillation.images import batches, cropped, flipped

IMAGES = torch.arange(2 * 2 * 4 * 5, dtype=torch.uint8).view(2, 2, 4, 5) + 1


def test_a_crop_by_hand() -> None:
    shifted = cropped(IMAGES, 2, torch.tensor([2, 0]), torch.tensor([2, 3]))
    assert torch.equal(shifted[0], IMAGES[0])  # at the padding: as it was
    expected = torch.zeros_like(IMAGES[1])
    expected[:, 2:, :4] = IMAGES[1, :, :2, 1:]  # two rows down, one column left, zeros come in
    assert torch.equal(shifted[1], expected)


def test_only_the_chosen_are_flipped() -> None:
    images = flipped(IMAGES, torch.tensor([False, True]))
    assert torch.equal(images[0], IMAGES[0])
    assert torch.equal(images[1], IMAGES[1].flip(-1))


def test_an_epoch_shows_every_image_once_and_repeats_exactly(dataset: Dataset) -> None:
    config = FitConfig(batch_size=100)
    first, again = (list(batches(dataset.train, config, seed=3, epoch=1)) for _ in range(2))
    other = list(batches(dataset.train, config, seed=3, epoch=2))
    assert [len(batch.labels) for batch in first] == [100] * 5 + [12]
    assert torch.cat([batch.indices for batch in first]).sort().values.tolist() == list(range(512))
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].indices, other[0].indices)
    assert first[0].images.min() >= 0
    assert first[0].images.max() <= 1
    assert torch.equal(dataset.train.labels[first[0].indices], first[0].labels)


def test_without_crop_a_batch_is_the_image_or_its_mirror(dataset: Dataset) -> None:
    batch = next(batches(dataset.train, FitConfig(crop=0), seed=0, epoch=0))
    originals = dataset.train.images[batch.indices].float() / 255
    assert torch.equal(batch.images[~batch.flipped], originals[~batch.flipped])
    assert torch.equal(batch.images[batch.flipped], originals[batch.flipped].flip(-1))
    assert 0 < int(batch.flipped.sum()) < len(batch.labels)


def test_no_augmentation(dataset: Dataset) -> None:
    tiny = LabelledImages(dataset.train.images[:8], dataset.train.labels[:8])
    batch = next(batches(tiny, FitConfig(crop=0, flip=False), seed=0, epoch=0))
    assert torch.equal(batch.images, tiny.images[batch.indices].float() / 255)
