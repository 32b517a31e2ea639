from __future__ import annotations

import numpy as np
import pytest
import torch

from kt_ray.data import LabelledImages
from kt_ray.zoo.recipe import Draw
from kt_ray.zoo.training.gather_kernels import gather_activations, gather_images
from kt_ray.zoo.training.objectives import images_of

COUNT = 9


@pytest.mark.parametrize("reach", [0, 2, 9, 40])
def test_images_equal_those_of_torch(reach: int) -> None:
    """Mirrored, and moved by up to `reach` pixels, which may be past the edge; 0 moves nothing."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (30, 2, 5, 7), dtype=torch.uint8)
    rows, flips = torch.randperm(30)[:COUNT], torch.rand(COUNT) < 0.5
    shifts = torch.randint(-reach, reach + 1, (COUNT if reach else 0, 2))
    x = np.zeros((2, 7, 9, COUNT), np.float32)
    x[:, 1:-1, 1:-1] = 7  # what an earlier batch left
    gather_images(images.numpy(), rows.numpy(), flips.numpy(), shifts.numpy(), x)
    expected = images_of(LabelledImages(images, torch.zeros(30, dtype=torch.int64)), Draw(rows, flips, shifts))
    np.testing.assert_allclose(x[:, 1:-1, 1:-1].transpose(3, 0, 1, 2), expected.numpy(), rtol=1e-6)
    assert x[:, 0].max() == x[:, -1].max() == x[:, :, 0].max() == x[:, :, -1].max() == 0


def test_mirrored_activations_follow_the_others() -> None:
    generator = np.random.default_rng(0)
    cached = generator.random((60, 3, 4, 5), np.float32)
    rows, flips = generator.permutation(30)[:COUNT], generator.random(COUNT) < 0.5
    x = np.zeros((3, 6, 7, COUNT), np.float32)
    gather_activations(cached, rows, flips, 30, x)
    np.testing.assert_array_equal(x[:, 1:-1, 1:-1].transpose(3, 0, 1, 2), cached[rows + 30 * flips])
