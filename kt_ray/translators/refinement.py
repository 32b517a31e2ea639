"""Learned optimiser steps on a translated block, driven by images that the translator has learned.

Probe images as in neural graphs (arXiv 2403.12143), steps as in learned optimisers (arXiv 1606.04474). The probes are
parameters that begin as noise; at translation they are run through the user's own stem, block and head, and no data
is needed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kt_ray.config import TranslatorConfig
from kt_ray.networks import Architecture, State
from kt_ray.translators.axial_transformer import RANK_CODE, AxialLayer, EdgeOutput, rank_code
from kt_ray.translators.surroundings import Surroundings, stem_activations
from kt_ray.translators.tokens import LAYOUTS, Units, feature_widths, write

FIRST_STEP = 0.02  # of weights of about 0.2


class Refiner(nn.Module):
    """Steps on target units, each from its error on the probes, its gradient, and all the source's units.

    A step moves against the normalised gradient by a learned rate, and by what an axial layer over the target's
    and source's tokens [B, K + H, C, width] adds; tokens are carried from step to step. The error is that of the
    head's first layer and of the logits, each over its variance.
    """

    def __init__(self, config: TranslatorConfig, architecture: Architecture) -> None:
        super().__init__()
        options = config.refinement
        self.architecture = architecture
        self.layout = LAYOUTS[architecture.pair]
        width, steps = options.width, options.steps
        values = self.layout.kernels * self.layout.values + len(self.layout.unit) + len(self.layout.channel)
        channels, *size = architecture.image_shape
        noise = torch.randn(options.probes, channels, *(max(2, side // 3) for side in size))
        # Broad strokes of light on dark, as logits: pixels start at 0.1 to 0.9.
        self.probes = nn.Parameter(2 * F.interpolate(noise, size=size, mode="bicubic") - 1.5)
        self.source = nn.Linear(18 + sum(feature_widths(config, architecture)), width)
        self.rank = nn.Linear(RANK_CODE, width)
        self.seen = nn.ModuleList(nn.Linear(2 * values + 3, width) for _ in range(steps))
        self.layers = nn.ModuleList(AxialLayer(width, options.heads, 0.0) for _ in range(steps))
        self.written = nn.ModuleList(EdgeOutput(width, self.layout) for _ in range(steps))
        self.scales = nn.Parameter(torch.full((steps,), FIRST_STEP))
        self.rates = nn.Parameter(torch.full((steps,), FIRST_STEP))

    def forward(self, units: Units, source: Units, members: State) -> Units:
        """`units` refined; `source` as the family read it; `members` is the source block with `stem.` and `head.`."""
        with torch.enable_grad():
            surroundings = Surroundings(
                members, stem_activations(members, torch.sigmoid(self.probes)), self.architecture
            )
            known = self.source(source.tokens())
            count = units.edges.shape[1]
            tokens = self.rank(rank_code(count, known))[:, None].expand(len(known), count, known.shape[2], -1)
            for step, layer in enumerate(self.layers):
                gradient, errors = self._gradient(units, surroundings)
                seen = torch.cat(
                    [units.tokens() * 3, gradient.tokens(), errors[:, None, None].expand(*tokens.shape[:3], -1)], dim=-1
                )
                mixed = layer(torch.cat([tokens + self.seen[step](seen), known], dim=1))
                tokens, known = mixed[:, :count], mixed[:, count:]
                change: Units = self.written[step](tokens)
                scale, rate = self.scales[step], self.rates[step]
                units = Units(
                    units.edges + scale * change.edges - rate * gradient.edges,
                    units.unit + scale * change.unit - rate * gradient.unit,
                    units.channel + scale * change.channel - rate * gradient.channel,
                )
        return units

    def _gradient(self, units: Units, surroundings: Surroundings) -> tuple[Units, Tensor]:
        """The gradient on the probes, every part of unit mean square; logs of both errors and of its size, [B, 3]."""
        parts = [units.edges, units.unit, units.channel]
        if not self.training:
            parts = [part.detach().requires_grad_() for part in parts]
        parts = [part if part.requires_grad else part.requires_grad_() for part in parts]
        features = surroundings.features(surroundings.outputs(write(Units(*parts), self.layout)))
        errors = [
            _relative_error(features, surroundings.wanted_features),
            _relative_error(surroundings.logits(features), surroundings.wanted_logits),
        ]
        used = [part for part in parts if part.numel()]
        found = torch.autograd.grad(
            torch.stack(errors).sum(), used, create_graph=self.training, retain_graph=self.training
        )
        sizes = [value.flatten(1).square().mean(1).add(1e-12).sqrt() for value in found]
        scaled = iter(
            value / size.reshape(-1, *[1] * (value.ndim - 1)) for value, size in zip(found, sizes, strict=True)
        )
        gradient = Units(*(next(scaled) if part.numel() else part for part in parts))
        logs = torch.stack([*errors, sizes[0]], dim=1).clamp_min(1e-8).log()
        return gradient, 0.2 * logs


def _relative_error(given: Tensor, wanted: Tensor) -> Tensor:
    """Mean square error over the variance of what is wanted, [B]."""
    return (given - wanted).square().flatten(1).mean(1) / wanted.flatten(1).var(1).clamp_min(1e-6)
