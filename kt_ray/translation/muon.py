"""Steps of Muon (arXiv 2502.16982) on layers, in coordinates in which what a layer reads is white.

Muon makes the singular values of a layer's momentum near each other, so that a step moves its outputs as far for every
input of one length. But what a trained layer reads varies along few directions. So a layer's matrix W [O, F] is taken
as V L⁻¹, where L Lᵀ are the second moments of what it reads, and steps are steps of V: they move outputs as far for
whatever is read. Whitening alone, without Muon, is a K-FAC step (arXiv 1503.05671) with one of its two factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NEWTON_SCHULZ = 5  # iterations
DAMPING = 0.1  # added to each second moment, relative to their mean


@dataclass(frozen=True)
class Schedule:
    """How many `steps` are taken, on `batch` samples each, in an order that `seed` decides.

    The first step is `learning_rate` times as large as its layer, both measured by what they do to outputs; later ones
    fall as a cosine. `momentum` is the share of the mean gradient that a step keeps.
    """

    steps: int = 75
    batch: int = 64
    learning_rate: float = 0.014
    momentum: float = 0.9
    seed: int = 0


@dataclass(frozen=True)
class Affine:
    """A layer as a matrix [O, F]: its `weight` [O, …], flattened, then its `bias` [O].

    `moments` [F, F] are the mean products of what a row is multiplied with, the last of which is the constant 1.
    """

    weight: Tensor
    bias: Tensor
    moments: Tensor


def descend(layers: Sequence[Affine], loss: Callable[[Tensor, float], Tensor], count: int, schedule: Schedule) -> None:
    """Take steps on `layers`, on batches of `count` samples.

    `loss` is given the rows of a batch and the share of the steps that is done.
    """
    generator, device = torch.Generator().manual_seed(schedule.seed), layers[0].weight.device
    passes = [torch.randperm(count, generator=generator) for _ in range(schedule.steps * schedule.batch // count + 1)]
    order = torch.cat(passes)[: schedule.steps * schedule.batch].reshape(schedule.steps, -1).to(device)
    shapes = dict.fromkeys(layer.weight.shape for layer in layers)
    alike = [[layer for layer in layers if layer.weight.shape == shape] for shape in shapes]
    starts = [_matrices([(layer.weight, layer.bias) for layer in group]) for group in alike]
    factors = [_factors(torch.stack([layer.moments for layer in group])) for group in alike]
    rates = [schedule.learning_rate * _rms(start @ factor) for start, factor in zip(starts, factors, strict=True)]
    whites = [_inverses(factor) for factor in factors]
    means = [torch.zeros_like(start) for start in starts]
    parameters = [one for group in alike for layer in group for one in (layer.weight, layer.bias)]
    for step, rows in enumerate(order):
        done = step / schedule.steps
        share = (1 + math.cos(math.pi * done)) / 2
        with torch.enable_grad():
            gradients = iter(torch.autograd.grad(loss(rows, done), parameters, materialize_grads=True))
        for group, white, rate, mean in zip(alike, whites, rates, means, strict=True):
            gradient = _matrices([(next(gradients), next(gradients)) for _ in group]) @ white.mT
            mean.lerp_(gradient, 1 - schedule.momentum)
            update = rate * orthogonalised(gradient.lerp(mean, schedule.momentum)) @ white
            for layer, moved in zip(group, update, strict=True):
                layer.weight.sub_(moved[:, :-1].reshape(layer.weight.shape), alpha=share)
                layer.bias.sub_(moved[:, -1], alpha=share)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return `matrices` [B, O, F] with singular values near each other, and a root mean square of 1.

    Five Newton-Schulz iterations, with the coefficients of Muon.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    for _ in range(NEWTON_SCHULZ):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    x = x / _rms(x).clamp_min(1e-12)
    return x.mT if tall else x


def _factors(moments: Tensor) -> Tensor:
    """Return L [B, F, F], lower triangular, of damped second moments L Lᵀ."""
    power = moments.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    damping = DAMPING * power[:, None, None] * torch.eye(moments.shape[1], device=moments.device)
    factors: Tensor = torch.linalg.cholesky(moments + damping)
    return factors


def _inverses(factors: Tensor) -> Tensor:
    """Return L⁻¹ of lower triangular L [B, F, F]."""
    identity = torch.eye(factors.shape[1], device=factors.device).expand_as(factors)
    inverses: Tensor = torch.linalg.solve_triangular(factors, identity, upper=False)
    return inverses


def _matrices(layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return weights and biases of layers of one shape as matrices [B, O, F]."""
    return torch.stack([torch.cat([weight.flatten(1), bias[:, None]], dim=1) for weight, bias in layers])


def _rms(matrices: Tensor) -> Tensor:
    """Return the root mean square of each of `matrices` [B, O, F], as [B, 1, 1]."""
    return matrices.square().mean((1, 2), keepdim=True).sqrt()
