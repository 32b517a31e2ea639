"""Distances of outputs from wanted ones, per member of a stack."""

from __future__ import annotations

from torch import Tensor

TEMPERATURE = 0.5  # in deviations of the wanted logits


def relative_error(given: Tensor, wanted: Tensor, variance: Tensor | None = None) -> Tensor:
    """Mean square error over the variance of what is wanted (measured unless given), per member: [B]."""
    return (given - wanted).square().flatten(1).mean(1) / (spread(wanted) if variance is None else variance)


def spread(wanted: Tensor) -> Tensor:
    """The variance of all values of a member, never 0: [B]."""
    return wanted.flatten(1).var(1).clamp_min(1e-6)


def kl(given: Tensor, wanted: Tensor) -> Tensor:
    """KL divergence from the predictions of logits `wanted` to those of `given` [B, N, classes], per member: [B]."""
    wanted = wanted.log_softmax(-1)
    return (wanted.exp() * (wanted - given.log_softmax(-1))).sum(-1).mean(1)


def tempered_kl(given: Tensor, wanted: Tensor) -> Tensor:
    """`kl` at a temperature that follows the spread of `wanted`: on made-up images predictions are too sure to learn
    from. [B]."""
    scale = temperature(wanted)
    return kl(given / scale, wanted / scale)


def temperature(wanted: Tensor) -> Tensor:
    """Return the temperature of `tempered_kl` for wanted logits [B, N, classes]: [B, 1, 1]."""
    return TEMPERATURE * wanted.flatten(1).std(1).clamp_min(1e-6)[:, None, None]
