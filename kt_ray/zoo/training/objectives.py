"""The two phases of training as objectives: batches in, gradients of many members out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kt_ray.data import LabelledImages, as_float
from kt_ray.errors import ZooError
from kt_ray.networks import AnyArchitecture, Architecture, PaperArchitecture, State, stacked
from kt_ray.zoo.recipe import Draw
from kt_ray.zoo.training import compiling, fused, gather_kernels
from kt_ray.zoo.training.optimizers import Parameters
from kt_ray.zoo.training.stacking import Apply, Implementation, many

EVALUATION_BATCH = 500  # images at once, at most
EVALUATED = 32 * EVALUATION_BATCH  # images times members at once
Arrays = dict[str, fused.Array]


@dataclass(frozen=True)
class Candidate:
    """A way to train one phase, and how many members at once."""

    implementation: Implementation
    at_once: int
    bfloat16: bool = False
    compile: bool = False
    recorded: bool = False


class Objective(Protocol):
    """Mean cross-entropy of every member on its own batch."""

    def gradient(self, parameters: Parameters, draw: Draw) -> Tensor:
        """Gradients [M, P] by `parameters.theta`, valid until the next call; running statistics are moved."""
        ...

    def accuracy(self, state: State, images: LabelledImages) -> Tensor:
        """The share of `images` each member gets right in evaluation mode, float64 [M]; NaN without images."""
        ...


def images_of(data: LabelledImages, draw: Draw) -> Tensor:
    """Float images [M, N, C, H, W] of `draw`: mirrored, then moved; what moves in from outside is 0."""
    images = as_float(data.images[draw.rows])
    images = torch.where(draw.flips[..., None, None, None], images.flip(-1), images)
    if draw.shifts.shape[-2] == 0:
        return images
    height, width = images.shape[-2:]
    i = torch.arange(height, device=images.device) - draw.shifts[..., :1]  # [M, N, H], the row that comes here
    j = torch.arange(width, device=images.device) - draw.shifts[..., 1:]
    inside = ((i >= 0) & (i < height))[..., :, None] & ((j >= 0) & (j < width))[..., None, :]
    places = i.clamp(0, height - 1)[..., :, None] * width + j.clamp(0, width - 1)[..., None, :]
    places = places.flatten(-2)[..., None, :].expand(*images.shape[:-2], height * width)
    return images.flatten(-2).gather(-1, places).unflatten(-1, (height, width)) * inside[..., None, :, :]  # type: ignore[no-untyped-call,no-any-return]


def accuracy(module: torch.nn.Module, state: State, images: LabelledImages) -> Tensor:
    """`Objective.accuracy` for stacked networks of one module."""
    count = stacked.size(state)
    hits = torch.zeros(count, dtype=torch.float64, device=images.labels.device)
    for batch, labels in images.batches(evaluation_batch(count)):
        logits = stacked.forward(module, state, batch, shared=True)
        hits += (logits.argmax(-1) == labels).sum(1)
    hits = hits.cpu()
    return hits / len(images) if len(images) else torch.full_like(hits, math.nan)


def evaluation_batch(members: int) -> int:
    """Return how many images `members` networks see at once in evaluation, whose memory is that of all of them."""
    return max(1, min(EVALUATION_BATCH, EVALUATED // members))


def source_objective(
    architecture: AnyArchitecture, members: int, data: LabelledImages, candidate: Candidate
) -> Objective:
    """Return the source phase of so many members. Raises ZooError if the fused kernels do not cover their networks."""
    if candidate.implementation == "fused":
        return Fused(architecture, data)
    module = architecture.source_network()
    apply = many(module, members, candidate.implementation)
    return Stacked(data, candidate, apply, partial(images_of, data), partial(accuracy, module))


def target_objective(
    architecture: Architecture, frozen: State, data: LabelledImages, variants: int, candidate: Candidate
) -> Objective:
    """Return the target phase of members whose stems and heads are `frozen` (names `stem.…`, `head.…`).

    Stem activations of so many `variants` of an image, itself and its mirror image, are kept; with 0 they are computed
    at every step. Raises ZooError if the fused kernels do not cover the target.
    """
    if candidate.implementation == "fused":
        return Fused(architecture, data, frozen, variants)
    of_stem, of_head = stacked.part(frozen, "stem"), stacked.part(frozen, "head")
    stem, head, network = architecture.stem(), architecture.head(stride=1), architecture.target_network()
    copied = architecture.layouts()[1].copied
    target = architecture.target_block(architecture.read_stride)
    block = many(target, stacked.size(frozen), candidate.implementation, frozen=copied)
    sides = [data.images, data.images.flip(-1)][:variants]
    chunks = [chunk for side in sides for chunk in torch.split(side, evaluation_batch(stacked.size(frozen)))]
    with torch.no_grad():  # [M, variants·images, channels, H, W]
        seen = [stacked.forward(stem, of_stem, as_float(chunk), shared=True) for chunk in chunks]
    cached = torch.cat(seen, dim=1) if seen else None

    def transplanted(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return stacked.forward(head, of_head, block(state, x).float())  # within vmap nothing is cast

    def inputs(draw: Draw) -> Tensor:
        if cached is None:
            return stacked.forward(stem, of_stem, images_of(data, draw))
        member = torch.arange(len(draw.rows), device=draw.rows.device)[:, None]
        return cached[member, draw.rows + len(data) * draw.flips]

    def measured(state: State, images: LabelledImages) -> Tensor:
        return accuracy(network, frozen | stacked.join(block=state), images)

    return Stacked(data, candidate, transplanted, inputs, measured)


class Stacked:
    """Networks by autograd, all members at once: `apply` to the `inputs` of a draw."""

    def __init__(
        self,
        data: LabelledImages,
        candidate: Candidate,
        apply: Apply,
        inputs: Callable[[Draw], Tensor],
        accuracy: Callable[[State, LabelledImages], Tensor],
    ) -> None:
        self.data, self.bfloat16, self.inputs, self.accuracy = data, candidate.bfloat16, inputs, accuracy
        self.apply: Apply = torch.compile(apply) if candidate.compile else apply

    def gradient(self, parameters: Parameters, draw: Draw) -> Tensor:
        x, labels = self.inputs(draw), self.data.labels[draw.rows]
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.views(parameters.theta).items()}
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits = self.apply(parameters.state | leaves, x)
        loss = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum") / labels.shape[1]
        return parameters.matrix(torch.autograd.grad(loss, list(leaves.values())))


class Fused:
    """Networks, one after another, by the kernels of this package.

    Without `frozen` they are source networks, with it target blocks between the frozen stems and heads, whose inputs
    are kept for `variants` of an image, or computed at every step.
    """

    def __init__(
        self, architecture: AnyArchitecture, data: LabelledImages, frozen: State | None = None, variants: int = 0
    ) -> None:
        make: Callable[[PaperArchitecture, int], fused.Network]
        make = fused.SourceNetwork if frozen is None else fused.TargetNetwork
        what, supports = ("source", fused.supports_source) if frozen is None else ("target", fused.supports_target)
        if not supports(architecture):
            raise ZooError(f"the fused kernels do not cover the {what} of {architecture}")
        compiling.ensure()
        self.data, self.training, self.shape = data, frozen is None, architecture.activation_shape
        self.make, self.networks = partial(make, architecture), dict[int, fused.Network]()
        self.frozen = rows(frozen) if frozen is not None else None
        self.laid: tuple[Parameters, Tensor, list[Arrays], list[Arrays]] | None = None
        self.cached = [self._cache(member, variants) for member in self.frozen or () if variants]

    def network(self, n: int) -> fused.Network:
        """Return the network for batches of `n` images, laid out once."""
        if n not in self.networks:
            self.networks[n] = self.make(n)
        return self.networks[n]

    def _cache(self, frozen: Arrays, variants: int) -> fused.Array:
        """Stem activations [variants·images, channels, H, W] of all images, and then of their mirror images."""
        cached, start = np.empty((variants * len(self.data), *self.shape), np.float32), 0
        for draw in (draw for flip in range(variants) for draw in _in_order(self.data, flip=flip == 1)):
            network, end = self._see(frozen, self.data, draw, 0, training=False), start + draw.rows.shape[1]
            cached[start:end] = network.p[:, 1:-1, 1:-1].transpose(3, 0, 1, 2)
            start = end
        return cached

    def _see(self, state: Arrays, data: LabelledImages, draw: Draw, m: int, *, training: bool) -> fused.Network:
        """Return the network for row `m` of a draw, with what its stem, of `state`, makes of these images."""
        network = self.network(draw.rows.shape[1])
        gather_kernels.gather_images(
            data.images.numpy(), draw.rows.numpy()[m], draw.flips.numpy()[m], draw.shifts.numpy()[m], network.stem.x
        )
        network.stem.forward(state, network.p, training)
        return network

    def _states(self, state: State) -> list[Arrays]:
        """Return what each member's network reads: its row of `state`, and what is frozen."""
        found = rows(state)
        return found if self.frozen is None else [one | row for one, row in zip(self.frozen, found, strict=True)]

    def _laid_out(self, parameters: Parameters) -> tuple[Tensor, list[Arrays], list[Arrays]]:
        """Return a matrix of gradients, and each member's state and gradients as arrays, laid out once."""
        if self.laid is None or self.laid[0] is not parameters:
            matrix = torch.zeros_like(parameters.theta)
            self.laid = parameters, matrix, self._states(parameters.state), rows(parameters.views(matrix))
        return self.laid[1:]

    def gradient(self, parameters: Parameters, draw: Draw) -> Tensor:
        matrix, states, gradients = self._laid_out(parameters)
        labels = self.data.labels.numpy()[draw.rows.numpy()]
        for m, (state, gradient) in enumerate(zip(states, gradients, strict=True)):
            if self.cached:
                network = self.network(draw.rows.shape[1])
                chosen = draw.rows.numpy()[m], draw.flips.numpy()[m]
                gather_kernels.gather_activations(self.cached[m], *chosen, len(self.data), network.p)
            else:
                network = self._see(state, self.data, draw, m, training=self.training)
            network.forward(state, self.training)
            network.backward(state, labels[m], gradient)
        return matrix

    def accuracy(self, state: State, images: LabelledImages) -> Tensor:
        hits = torch.zeros(stacked.size(state), dtype=torch.float64)
        for m, member in enumerate(self._states(state)):
            for draw in _in_order(images):
                network = self._see(member, images, draw, 0, training=False)
                guess = network.forward(member, training=False).argmax(0)
                hits[m] += int((guess == images.labels[draw.rows[0]].numpy()).sum())
        return hits / len(images) if len(images) else torch.full_like(hits, math.nan)


def rows(state: State) -> list[Arrays]:
    """Each member of a stack as arrays of the same memory."""
    return [fused.arrays(stacked.take(state, m)) for m in range(stacked.size(state))]


def _in_order(images: LabelledImages, flip: bool = False) -> list[Draw]:
    """All `images` in order as draws of one member."""
    rows = torch.arange(len(images))[None]
    whole = Draw(rows, torch.full_like(rows, flip, dtype=torch.bool), torch.zeros(1, 0, 2, dtype=torch.int64))
    return [whole.batch(start, 128) for start in range(0, len(images), 128)]
