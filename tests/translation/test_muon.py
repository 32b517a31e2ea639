"""Steps of Muon in coordinates in which what a layer reads is white."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kt_ray.translation.muon import Affine, Schedule, descend, orthogonalised


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 36), (40, 18), (1, 5)])
def test_a_step_has_the_size_that_is_said_in_every_direction(shape: tuple[int, int]) -> None:
    """The largest and the smallest singular value of a step are near each other, however far those of the gradient."""
    gradients = torch.stack([random(*shape) * 1e-3, random(*shape, seed=1)])
    for step, gradient in zip(orthogonalised(gradients), gradients, strict=True):
        values = torch.linalg.svdvals(step)
        assert step.square().mean().sqrt() == pytest.approx(1.0, rel=1e-4)
        assert values.max() < 2 * values.min()
        assert (step * gradient).sum() > 0


def remaining(white: bool) -> float:
    """Return the share of a layer's error that is left after steps, where all wanted is in what varies little."""
    inputs = random(512, 12) * torch.logspace(0, 0.7, 12) + 1.0
    wanted = inputs[:, :3] @ random(3, 4, seed=1)
    weight, bias = (0.3 * random(4, 12, seed=2)).requires_grad_(), torch.zeros(4).requires_grad_()
    read = torch.cat([inputs, torch.ones(512, 1)], dim=1)
    moments = read.T @ read / len(read) if white else torch.eye(13)

    def loss(rows: Tensor, _: float) -> Tensor:
        return (inputs[rows] @ weight.T + bias - wanted[rows]).square().mean()

    every = torch.arange(len(inputs))
    before = float(loss(every, 0.0).detach())
    with torch.no_grad():
        descend([Affine(weight, bias, moments)], loss, len(inputs), Schedule(steps=60, learning_rate=0.2))
    return float(loss(every, 1.0).detach()) / before


def test_what_varies_most_does_not_hide_the_rest() -> None:
    assert remaining(white=True) < 0.5 * remaining(white=False)
