"""Optimiser steps on a translated block, Adam's or second-order ones, driven by images that the translator carries.

Probe images as in neural graphs (arXiv 2403.12143), steps as in learned optimisers (arXiv 1606.04474). At translation
the probes are run through the user's own stem, block and head, and no data is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kt_ray.config import TranslatorConfig
from kt_ray.jobs.cuda_graphs import Recorder, can_record
from kt_ray.networks import Architecture, State
from kt_ray.translation.adam import MOMENTUM, SECOND_MOMENT, Change, adam
from kt_ray.translation.block_runner import Surroundings, stem_activations, surround
from kt_ray.translation.divergences import relative_error, temperature, tempered_kl
from kt_ray.translation.families.axial_transformer import rank_code
from kt_ray.translation.gauss_newton import GaussNewton
from kt_ray.translation.probe_images import Mixture, drawn_curves, mixture, random_curves, to_images, to_parameters
from kt_ray.translation.second_order import Curvature, newton_step
from kt_ray.translation.units import Units, target_layout, write

FIRST_RATE, LAST_RATE = 0.02, 0.002  # of Adam's first and last step before training; weights are about 0.2
FEATURES = 0.1  # weight of the error of the head's input where predictions count too
SCREENING = 8  # of several starts, the best after one in so many of the steps goes on alone


class Refiner(nn.Module):
    """Optimise target units by `steps` steps on probes.

    A step is Adam's, with a rate for each kind of weight; with `trained`, rates and a `Change` of the direction are
    learned. The error is the square error of the input of the head's ReLU plus that of the logits, each over its
    variance, on one set of probes a step; the last steps (`predictions`) add the KL divergence of tempered predictions.
    Of several starts, the one with the least divergence on all probes after an eighth of the steps goes on.

    Probes and rates are parameters if they are learned (`trained`), else buffers. Probes are blank until they are drawn
    or loaded; there are none with `images: projection`.
    """

    probes: Tensor
    log_rates: Tensor
    corrections: Tensor

    def __init__(self, config: TranslatorConfig, architecture: Architecture) -> None:
        super().__init__()
        options = config.refinement
        self.architecture = architecture
        self.layout = target_layout(architecture)
        self.matched = round(options.predictions * options.steps)
        self.sets, self.images = options.probe_sets, options.images
        self.shared = options.images == "projection"
        images = config.projection.probes if self.shared else options.probes
        count = 0 if self.shared else images * options.probe_sets
        self.steps, self.method, self.products = options.steps, options.method, options.products
        self.curves = random_curves(count, architecture.image_shape)  # before what comes of the same generator below
        rates = torch.linspace(FIRST_RATE, LAST_RATE, options.steps).log()
        held = {} if self.shared else {"probes": torch.zeros(count, *architecture.image_shape)}
        if self.method == "adam":
            held["log_rates"] = rates[:, None].repeat(1, self.layout.kernels + 2)
            shares = [[1 - decay**step for decay in (MOMENTUM, SECOND_MOMENT)] for step in range(1, self.steps + 1)]
            self.register_buffer("corrections", torch.tensor(shares).reshape(-1, 2), persistent=False)
        for name, value in held.items():
            if options.trained:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.change = Change(config, architecture) if options.trained and self.method == "adam" else None
        self.gauss_newton = None
        if self.method == "gauss_newton":
            self.gauss_newton = GaussNewton(options.steps, options.rows, images, architecture.classes, self.layout)
            self.gauss_newton.requires_grad_(options.trained)

    def draw_probes(self, images: Tensor | Mixture, generator: torch.Generator) -> None:
        """Draw strokes, or with `images: mixture` images like `images`; see `Translator.draw_probes`."""
        if self.shared:
            return
        if self.images == "strokes":
            drawn = drawn_curves(self.curves, self.architecture.image_shape)
        else:
            drawn = mixture(images, len(self.probes), generator)
        self.probes.data = to_parameters(drawn).to(self.probes)

    def forward(
        self, starts: Sequence[Units], source: Units, members: State, shared: Surroundings | None = None
    ) -> Units:
        """Return the best of `starts`, refined.

        `source` is what the family read. `members` map the source block's names, `stem.…` and `head.…` to stacks;
        `shared` are their surroundings on the probes of the projected base.
        """
        sets = [shared] if self.shared and shared is not None else self._surroundings(members)
        device, differentiated = source.edges.device, self.training or torch.is_grad_enabled()
        recorded = self.method == "adam" and not differentiated and can_record(device)
        recorder = Recorder(device) if recorded else None
        first = max(1, self.steps // SCREENING) if len(starts) > 1 else 0
        units = self._best([self._steps(units, source, sets, range(first), recorder) for units in starts], sets)
        return self._steps(units, source, sets, range(first, self.steps), recorder)

    def _surroundings(self, members: State) -> list[Surroundings]:
        """Run `members` on each set of probes that a step reads."""
        return [
            surround(members, stem_activations(members, part, self.architecture), self.architecture)
            for part in to_images(self.probes).chunk(self.sets)[: self.steps]
        ]

    def _best(self, candidates: Sequence[Units], sets: Sequence[Surroundings]) -> Units:
        """Return the candidate with the least divergence for each member; what is not finite comes last."""
        if len(candidates) == 1:
            return candidates[0]
        with torch.no_grad():
            divergence = torch.stack([self._divergence(units, sets) for units in candidates])  # [candidates, B]
        best = divergence.nan_to_num(nan=torch.inf).argmin(0)
        rows = torch.arange(len(best), device=best.device)
        edges, unit, channel = (
            torch.stack([getattr(units, part) for units in candidates])[best, rows]
            for part in ("edges", "unit", "channel")
        )
        return Units(edges, unit, channel)

    def _steps(
        self,
        units: Units,
        source: Units,
        sets: Sequence[Surroundings],
        steps: range,
        recorder: Recorder | None = None,
    ) -> Units:
        """Return `units` after `steps` of a fresh optimiser."""
        count = self.steps
        if self.gauss_newton is not None:
            for step in steps:
                units = self.gauss_newton(units, sets[step % len(sets)], step)
            return units
        if self.method == "newton":
            for step in steps:
                units = self._newton(units, sets[step % len(sets)], step >= count - self.matched)
            return units
        parts = [units.edges, units.unit, units.channel]
        state = [*parts, *map(torch.zeros_like, parts), *map(torch.zeros_like, parts)]
        if self.change is not None and steps:
            state.append(self.change.begin(units, source))
        times = rank_code(count, units.edges)
        for number, step in enumerate(steps):
            place, predictions = step % len(sets), step >= count - self.matched
            advance = partial(self._advance, sets[place], predictions)
            inputs = (self.log_rates[step], times[step], self.corrections[number], *state)
            state = advance(*inputs) if recorder is None else recorder((place, predictions), advance, *inputs)
        return Units(*(state[:3] if recorder is None else (part.clone() for part in state[:3])))

    def _advance(
        self,
        surroundings: Surroundings,
        predictions: bool,
        log_rates: Tensor,
        time: Tensor,
        corrections: Tensor,
        *state: Tensor,
    ) -> list[Tensor]:
        """Return `state`, which is of units, of both moments of Adam and tokens if any, after a step."""
        units, tokens = Units(*state[:3]), list(state[9:])
        gradient, errors = self._gradient(units, surroundings, predictions)
        found, first, second = adam(gradient, state[3:6], state[6:9], corrections)
        direction = Units(*found)
        if self.change is not None:
            direction, *tokens = self.change(units, direction, errors, time, *tokens)
        rates = log_rates.exp()
        return [
            units.edges - rates[:-2, None] * direction.edges,
            units.unit - rates[-2] * direction.unit,
            units.channel - rates[-1] * direction.channel,
            *first,
            *second,
            *tokens,
        ]

    def _newton(self, units: Units, surroundings: Surroundings, predictions: bool) -> Units:
        """Return `units` after one second-order step on the error of which `_gradient` is the gradient."""
        parts = [units.edges, units.unit, units.channel]
        used = [number for number, part in enumerate(parts) if part.numel()]

        def outputs(values: Sequence[Tensor]) -> list[Tensor]:
            whole = list(parts)
            for number, value in zip(used, values, strict=True):
                whole[number] = value
            features = surroundings.features(surroundings.outputs(write(Units(*whole), self.layout)))
            return [features, surroundings.logits(features)]

        stepped = newton_step(
            [parts[number] for number in used],
            Curvature(
                outputs,
                lambda found: _error(surroundings, found[0], found[1], predictions),
                lambda found, moved: _curved(surroundings, found[1], moved[0], moved[1], predictions),
            ),
            self.products,
        )
        for number, value in zip(used, stepped, strict=True):
            parts[number] = value
        return Units(*parts)

    def _divergence(self, units: Units, sets: Sequence[Surroundings]) -> Tensor:
        """Return the KL divergence of tempered predictions on all probes from the source's, [B]."""
        block = write(units, self.layout)
        found = []
        for surroundings in sets:
            logits = surroundings.logits(surroundings.features(surroundings.outputs(block)))
            found.append(tempered_kl(logits, surroundings.wanted_logits))
        return torch.stack(found).mean(0)

    def _gradient(self, units: Units, surroundings: Surroundings, predictions: bool) -> tuple[list[Tensor], Tensor]:
        """Return the gradient of `_error` by each part of the units; logs of both errors and of its size, [B, 3]."""
        parts = [units.edges, units.unit, units.channel]
        with torch.enable_grad():
            if not self.training:
                parts = [part.detach() for part in parts]
            parts = [part if part.requires_grad else part.requires_grad_() for part in parts]
            features = surroundings.features(surroundings.outputs(write(Units(*parts), self.layout)))
            logits = surroundings.logits(features)
            errors = [
                relative_error(features, surroundings.wanted_features, surroundings.feature_variance),
                relative_error(logits, surroundings.wanted_logits, surroundings.logit_variance),
            ]
            total = _error(surroundings, features, logits, predictions)
            used = [part for part in parts if part.numel()]
            found = iter(torch.autograd.grad(total.sum(), used, create_graph=self.training, retain_graph=self.training))
        gradient = [next(found) if part.numel() else part for part in parts]
        size = gradient[0].flatten(1).square().mean(1).add(1e-12).sqrt()
        logs = torch.stack([*errors, size], dim=1).clamp_min(1e-8).log()
        return gradient, 0.2 * (logs if self.training else logs.detach())


def _error(surroundings: Surroundings, features: Tensor, logits: Tensor, predictions: bool) -> Tensor:
    """Return the errors of head inputs and logits over their variances, plus KL with `predictions`: [B]."""
    head = relative_error(features, surroundings.wanted_features, surroundings.feature_variance)
    last = relative_error(logits, surroundings.wanted_logits, surroundings.logit_variance)
    if predictions:
        return FEATURES * head + last + tempered_kl(logits, surroundings.wanted_logits)
    return head + last


def _curved(
    surroundings: Surroundings, logits: Tensor, features: Tensor, moved: Tensor, predictions: bool
) -> list[Tensor]:
    """Return the second derivatives of `_error` at `logits` times a direction of head inputs and logits."""
    scales = [
        2 / (part[0].numel() * variance)[:, None, None]
        for part, variance in ((features, surroundings.feature_variance), (moved, surroundings.logit_variance))
    ]
    last = scales[1] * moved
    if not predictions:
        return [scales[0] * features, last]
    scale = temperature(surroundings.wanted_logits)
    chances = torch.softmax(logits / scale, dim=-1)
    weighted = chances * moved
    spread = weighted - chances * weighted.sum(-1, keepdim=True)
    return [FEATURES * scales[0] * features, last + spread / (scale.square() * logits.shape[1])]
