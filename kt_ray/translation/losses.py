"""Losses of a translator: on parameters, on block outputs, and on logits through the member's frozen head."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from kt_ray.config import LOGIT_TERMS, OUTPUT_TERMS, STRUCTURE_TERMS, LossConfig
from kt_ray.errors import ConfigError
from kt_ray.networks import Architecture, State
from kt_ray.registry import register
from kt_ray.translation.block_runner import stem_activations, surround
from kt_ray.translation.divergences import kl, relative_error
from kt_ray.translation.units import Layout, balanced, take, target_layout, to_units

ENUMERATED = 6  # up to so many hidden units every order is tried at once; beyond, an assignment is solved for each


def weight_mse(translated: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """Mean over the tensors of their MSE (the paper's loss), per member: [B]."""
    return torch.stack([(translated[name] - value).square().flatten(1).mean(1) for name, value in target.items()]).mean(
        0
    )


def normalised_mse(translated: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """Mean over the tensors of their MSE over the tensor's own variance, or one number's square, per member: [B]."""
    errors = []
    for name, value in target.items():
        values = value.flatten(1)
        variance = values.var(1) if values.shape[1] > 1 else values.square().mean(1)
        errors.append((translated[name] - value).square().flatten(1).mean(1) / variance.clamp_min(1e-6))
    return torch.stack(errors).mean(0)


def aligned_mse(translated: Mapping[str, Tensor], target: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Smallest error over all orders of the target's hidden units, over the target's variance, per member: [B].

    ReLU scales of both are balanced first, so for convolutions and the MLP no symmetry is left and the minimum is
    exact. Attention has no such scales, but queries may be mixed with keys, and values with the projection, by any
    invertible matrix: of that, only the common order of units is searched.
    """
    given, wanted = to_units(translated, layout), to_units(target, layout)
    if layout.projects_itself:
        given, wanted = balanced(given), balanced(wanted)
    ours, theirs = (torch.cat([units.edges.flatten(2), units.unit], dim=2) for units in (given, wanted))
    theirs = take(theirs, best_order(torch.cdist(ours, theirs).square().detach()))
    error = (ours - theirs).square().flatten(1).sum(1) + (given.channel - wanted.channel).square().flatten(1).sum(1)
    both = torch.cat([theirs.flatten(1), wanted.channel.flatten(1)], dim=1)
    return error / both.shape[1] / both.var(1).clamp_min(1e-6)


def best_order(cost: Tensor) -> Tensor:
    """The order of columns with the least summed cost for rows [B, K, K]: int64 [B, K].

    Beyond `ENUMERATED` units the host solves it, and waits for the device, once a call: on the device the Hungarian
    method is a chain of K² dependent operations, which takes longer than the wait.
    """
    units = cost.shape[1]
    if units <= ENUMERATED:
        orders = _permutations(units, cost.device)
        totals = cost[:, torch.arange(units, device=cost.device), orders].sum(-1)  # [B, K!]
        return orders[totals.argmin(1)]
    solved = [linear_sum_assignment(matrix)[1] for matrix in cost.cpu().numpy()]
    return torch.from_numpy(np.stack(solved)).to(cost.device)


@functools.cache
def _permutations(units: int, device: torch.device) -> Tensor:
    """All orders of `units` units, int64 [units!, units]; copied to a device once."""
    return torch.tensor(list(itertools.permutations(range(units))), device=device)


class TranslationLoss:
    """The weighted sum of the terms of a LossConfig.

    `register.loss` decorates a class that is called with its options; its objects are called with the `Surroundings` of
    the batch's members, the translated blocks and the images' labels [N], and return the term of each member, [B].
    """

    def __init__(self, config: LossConfig, architecture: Architecture) -> None:
        self.config = config
        self.architecture = architecture
        self.layout = target_layout(architecture)
        self.terms = {
            name: register.loss.make(name, term.options) for name, term in config.terms.items() if term.weight
        }
        if config.aligned_mse and self.layout.flat:
            raise ConfigError(
                f"loss.aligned_mse: hidden units of pair {architecture.pair}'s target are not known; set it to 0"
            )

    @property
    def needs_images(self) -> bool:
        """True if a term reads activations or logits."""
        return bool(self.terms) or any(getattr(self.config, name) for name in OUTPUT_TERMS + LOGIT_TERMS)

    @property
    def needs_targets(self) -> bool:
        """True if every term reads the trained target."""
        return not self.needs_images

    def weights(self, progress: float) -> dict[str, float]:
        """The weight of each term at `progress`, from 0 to 1, of training; terms of weight 0 are left out."""
        config = self.config
        fading = 1.0 if config.structure_until == 1 else max(0.0, 1 - progress / config.structure_until)
        weights = {name: getattr(config, name) * (progress >= config.outputs_from) for name in OUTPUT_TERMS}
        weights |= {name: fading * getattr(config, name) for name in STRUCTURE_TERMS}
        weights |= {name: getattr(config, name) * (progress >= config.logits_from) for name in LOGIT_TERMS}
        weights |= {name: config.terms[name].weight * (progress >= config.logits_from) for name in self.terms}
        return {name: weight for name, weight in weights.items() if weight}

    def __call__(
        self,
        translated: State,
        members: State,
        target: State,
        images: Tensor | None = None,
        labels: Tensor | None = None,
        progress: float = 0.0,
    ) -> Tensor:
        """Scalar loss of `translated` blocks for `members` (`stem.…`, `source.…`, `head.…`).

        `target` is what the weights are compared with; members whose target is NaN do not count there. `images` are
        floats [N, C, H, W] with `labels` [N], shared by all members.
        """
        weights = self.weights(progress)
        terms: dict[str, Tensor] = {}
        if any(name in weights for name in STRUCTURE_TERMS):
            known = ~torch.stack([value.flatten(1).isnan().any(1) for value in target.values()]).any(0)
            share = len(known) / known.sum().clamp_min(1)  # so that the mean over all is the mean over those known
            structure = self._structure(
                translated, {name: value.nan_to_num() for name, value in target.items()}, weights
            )
            terms |= {name: torch.where(known, term, 0.0) * share for name, term in structure.items()}
        if images is not None and labels is not None and weights.keys() - set(STRUCTURE_TERMS):
            terms |= self._function(translated, members, images, labels, weights)
        total = 0 * next(iter(translated.values())).sum()  # a loss even where no member has a target
        for name, term in terms.items():
            total = total + weights[name] * term.mean()
        return total

    def _structure(self, translated: State, target: State, weights: Mapping[str, float]) -> dict[str, Tensor]:
        terms = {}
        if "weight_mse" in weights:
            terms["weight_mse"] = weight_mse(translated, target)
        if "normalised_mse" in weights:
            terms["normalised_mse"] = normalised_mse(translated, target)
        if "aligned_mse" in weights:
            terms["aligned_mse"] = aligned_mse(translated, target, self.layout)
        return terms

    def _function(
        self, translated: State, members: State, images: Tensor, labels: Tensor, weights: Mapping[str, float]
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            network = {name.removeprefix("source."): value for name, value in members.items()}
            activations = stem_activations(network, images, self.architecture)
            surroundings = surround(network, activations, self.architecture)
        outputs = surroundings.outputs(translated)
        terms = {}
        if "block_output" in weights:
            terms["block_output"] = relative_error(outputs, surroundings.wanted)
        if weights.keys() == {"block_output"}:
            return terms
        features = surroundings.features(outputs)
        if "head_input" in weights:
            terms["head_input"] = relative_error(features, surroundings.wanted_features)
        if "kl" in weights or "cross_entropy" in weights:
            logits = surroundings.logits(features)
            terms["kl"] = kl(logits, surroundings.wanted_logits)
            expected = labels.expand(len(logits), -1).flatten()
            entropy = F.cross_entropy(logits.flatten(0, 1), expected, reduction="none")
            terms["cross_entropy"] = entropy.reshape(logits.shape[:2]).mean(1)
        for name in self.terms.keys() & weights.keys():
            terms[name] = self.terms[name](surroundings, translated, labels)
        return {name: term for name, term in terms.items() if name in weights}
