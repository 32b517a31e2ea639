"""Steps of Muon (arXiv 2502.16982) on kernels and biases: momentum whose singular values are made near each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = 5  # iterations


class Schedule(Protocol):
    """How many `steps` are taken on batches of how many samples, and how; `whole_network.Fitting` says what each is."""

    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def seed(self) -> int: ...


def descend(
    parameters: list[nn.Parameter], loss: Callable[[Tensor, float], Tensor], count: int, schedule: Schedule
) -> None:
    """Take steps of Muon, their size falling as a cosine, on batches of `count` samples.

    `loss` is given the rows of a batch and the share of the steps that is done.
    """
    generator, device = torch.Generator().manual_seed(schedule.seed), parameters[0].device
    passes = [torch.randperm(count, generator=generator) for _ in range(schedule.steps * schedule.batch // count + 1)]
    order = torch.cat(passes)[: schedule.steps * schedule.batch].reshape(schedule.steps, -1).to(device)
    rates = [schedule.learning_rate * one.square().mean().sqrt() for one in parameters]
    means = [torch.zeros_like(one) for one in parameters]
    alike = [
        [n for n, one in enumerate(parameters) if one.shape == shape]
        for shape in {one.shape: None for one in parameters}
    ]
    for step, rows in enumerate(order):
        done = step / schedule.steps
        share = (1 + math.cos(math.pi * done)) / 2
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(rows, done), parameters)
        for mean, gradient in zip(means, gradients, strict=True):
            mean.lerp_(gradient, 1 - schedule.momentum)
        for numbers in alike:
            updates = torch.stack([gradients[n].lerp(means[n], schedule.momentum) for n in numbers])
            for n, update in zip(numbers, orthogonalised(updates), strict=True):
                parameters[n].sub_(share * rates[n] * update)


def orthogonalised(updates: Tensor) -> Tensor:
    """Return each of `updates` [B, O, …] with singular values near each other, and a root mean square of 1.

    Each is taken as a matrix of O rows; five Newton-Schulz iterations, with the coefficients of Muon. A vector [O] is
    only scaled.
    """
    rows = updates.flatten(2) if updates.dim() > 2 else updates[:, None]
    tall = rows.shape[1] > rows.shape[2]
    x: Tensor = rows.mT if tall else rows
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    for _ in range(NEWTON_SCHULZ if x.shape[1] > 1 else 0):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    x = x * x.square().mean((1, 2), keepdim=True).clamp_min(1e-24).rsqrt()
    return (x.mT if tall else x).reshape(updates.shape)
