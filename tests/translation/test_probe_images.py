"""Images that stand in for data: random strokes, and draws from a mixture fitted to training images."""

from __future__ import annotations

import pytest
import torch

from kt_ray.data import Dataset, as_float
from kt_ray.errors import DataError
from kt_ray.translation.probe_images import FEWEST, NEIGHBOURS, fitted, local_mixture, mixture, shapes, strokes


def test_strokes_are_light_on_dark_and_differ() -> None:
    drawn = strokes(16, (3, 32, 28), torch.Generator().manual_seed(0))
    assert drawn.shape == (16, 3, 32, 28)
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) <= 1
    assert 0.02 < float(drawn.mean()) < 0.4
    assert len({float(image.sum()) for image in drawn}) == 16
    assert torch.equal(drawn, strokes(16, (3, 32, 28), torch.Generator().manual_seed(0)))


def test_shapes_are_filled_light_on_dark_and_differ() -> None:
    drawn = shapes(16, (3, 32, 28), torch.Generator().manual_seed(0))
    assert drawn.shape == (16, 3, 32, 28)
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) <= 1
    lines = strokes(64, (3, 32, 28), torch.Generator().manual_seed(0))
    assert float((drawn > 0.1).float().mean()) > 2 * float((lines > 0.1).float().mean())
    assert len({float(image.sum()) for image in drawn}) == 16
    assert torch.equal(drawn, shapes(16, (3, 32, 28), torch.Generator().manual_seed(0)))


def test_a_mixture_draws_images_like_the_given_but_none_of_them(dataset: Dataset) -> None:
    drawn = mixture(dataset.train.images, 64, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, mixture(dataset.train.images, 64, torch.Generator().manual_seed(0)))
    assert torch.equal(drawn, mixture(fitted(dataset.train.images), 64, torch.Generator().manual_seed(0)))
    assert drawn.shape == (64, 1, 28, 28)
    real = as_float(dataset.train.images)
    others = torch.cdist(real.flatten(1), real.flatten(1)).fill_diagonal_(torch.inf).min(1).values
    nearest = torch.cdist(drawn.flatten(1), real.flatten(1)).min(1).values
    assert float(nearest.min()) > 0.2 * float(others.median())  # no training image is kept
    drawn_from_nothing = strokes(64, (1, 28, 28), torch.Generator().manual_seed(0))
    foreign = torch.cdist(drawn_from_nothing.flatten(1), real.flatten(1)).min(1).values
    assert float(nearest.mean()) < float(foreign.mean())
    sharp = float(real.std(0).mean())  # as much contrast as the given, which means of images lack
    assert abs(float(drawn.std(0).mean()) / sharp - 1) < 0.15


def test_a_mixture_of_few_images_in_colour_can_be_drawn() -> None:
    images = torch.randint(256, (7, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    drawn = mixture(images, 5, torch.Generator().manual_seed(0))
    assert drawn.shape == (5, 3, 8, 8)
    assert drawn.isfinite().all()


@pytest.mark.parametrize("few", [1, FEWEST - 1, FEWEST])
def test_a_mixture_leaves_out_components_of_so_few_images_that_draws_would_be_these(few: int) -> None:
    """Of 120 images, some are light and far from all others: a component of their own."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(40, (120, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images[:few] += 200
    drawn = mixture(images, 400, generator)
    assert bool((drawn.mean((1, 2, 3)) > 0.5).any()) is (few >= FEWEST)


def test_too_few_images_for_a_mixture_are_refused() -> None:
    with pytest.raises(DataError, match="at least 5 training images, got 4; give more, or choose strokes"):
        mixture(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), 2, torch.Generator())


def test_a_local_mixture_draws_sharper_images_than_a_mixture_and_none_of_the_given(dataset: Dataset) -> None:
    images = dataset.train.images
    drawn = local_mixture(images, 64, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, local_mixture(images, 64, torch.Generator().manual_seed(0)))
    assert drawn.shape == (64, 1, 28, 28)
    real = as_float(images).flatten(1)
    others = torch.cdist(real, real).fill_diagonal_(torch.inf).min(1).values
    nearest = torch.cdist(drawn.flatten(1), real).min(1).values
    assert float(nearest.min()) > 0.2 * float(others.median())  # no training image is kept
    of_clusters = mixture(images, 64, torch.Generator().manual_seed(0))
    assert float(nearest.mean()) < float(torch.cdist(of_clusters.flatten(1), real).min(1).values.mean())


def test_a_local_mixture_draws_rare_images_as_often_as_they_occur() -> None:
    """Of 120 images, `NEIGHBOURS` are light and far from all others."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(40, (120, 3, 8, 8), dtype=torch.uint8, generator=generator)
    images[:NEIGHBOURS] += 200
    light = local_mixture(images, 400, generator).mean((1, 2, 3)) > 0.5
    assert 0.02 < float(light.float().mean()) < 0.13  # NEIGHBOURS of 120


def test_too_few_images_for_a_local_mixture_are_refused() -> None:
    with pytest.raises(DataError, match="at least 8 training images, got 7; give more"):
        local_mixture(torch.zeros(7, 1, 8, 8, dtype=torch.uint8), 2, torch.Generator())
