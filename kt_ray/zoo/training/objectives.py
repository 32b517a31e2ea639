"""The two phases of training as objectives: batches in, gradients of many members out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kt_ray.data import LabelledImages, as_float
from kt_ray.errors import ZooError
from kt_ray.networks import AnyArchitecture, Architecture, State, stacked
from kt_ray.zoo.recipe import Draw
from kt_ray.zoo.training import compiling, fused, gather_kernels
from kt_ray.zoo.training.optimizers import Parameters
from kt_ray.zoo.training.stacking import Apply, Implementation, many

EVALUATION_BATCH = 500  # images at once, at most
EVALUATED = 32 * EVALUATION_BATCH  # images times members at once


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


def _torch_gradient(parameters: Parameters, apply: Apply, x: Tensor, labels: Tensor, bfloat16: bool) -> Tensor:
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.views(parameters.theta).items()}
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        logits = apply(parameters.state | leaves, x)
    loss = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum") / labels.shape[1]
    return parameters.matrix(torch.autograd.grad(loss, list(leaves.values())))


class TorchSource:
    """Source networks by autograd."""

    def __init__(
        self,
        architecture: AnyArchitecture,
        members: int,
        data: LabelledImages,
        implementation: Implementation,
        bfloat16: bool = False,
        compile: bool = False,
    ) -> None:
        self.module, self.data, self.bfloat16 = architecture.source_network(), data, bfloat16
        apply = many(self.module, members, implementation)
        self.apply: Apply = torch.compile(apply) if compile else apply

    def gradient(self, parameters: Parameters, draw: Draw) -> Tensor:
        x, labels = images_of(self.data, draw), self.data.labels[draw.rows]
        return _torch_gradient(parameters, self.apply, x, labels, self.bfloat16)

    def accuracy(self, state: State, images: LabelledImages) -> Tensor:
        return accuracy(self.module, state, images)


class TorchTarget:
    """Target blocks by autograd between the `frozen` stems and heads (names `stem.…`, `head.…`)."""

    def __init__(
        self,
        architecture: Architecture,
        frozen: State,
        data: LabelledImages,
        implementation: Implementation,
        variants: int,
        bfloat16: bool = False,
        compile: bool = False,
    ) -> None:
        self.data, self.frozen, self.bfloat16 = data, frozen, bfloat16
        self.stem, self.network = architecture.stem(), architecture.target_network()
        block = many(
            architecture.target_block(architecture.read_stride),
            stacked.size(frozen),
            implementation,
            frozen=architecture.layouts()[1].copied,
        )
        head, of_head = architecture.head(stride=1), stacked.part(frozen, "head")

        def transplanted(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
            return stacked.forward(head, of_head, block(state, x).float())  # within vmap nothing is cast

        self.apply: Apply = torch.compile(transplanted) if compile else transplanted
        self.cached = self._cache(variants) if variants else None

    @torch.no_grad()
    def _cache(self, variants: int) -> Tensor:
        """Stem activations [M, variants·images, channels, H, W] of all images, and then of their mirror images."""
        sides = [self.data.images, self.data.images.flip(-1)][:variants]
        chunks = [chunk for side in sides for chunk in torch.split(side, evaluation_batch(stacked.size(self.frozen)))]
        stem = stacked.part(self.frozen, "stem")
        return torch.cat([stacked.forward(self.stem, stem, as_float(chunk), shared=True) for chunk in chunks], dim=1)

    def gradient(self, parameters: Parameters, draw: Draw) -> Tensor:
        if self.cached is not None:
            member = torch.arange(len(draw.rows), device=draw.rows.device)[:, None]
            x = self.cached[member, draw.rows + len(self.data) * draw.flips]
        else:
            x = stacked.forward(self.stem, stacked.part(self.frozen, "stem"), images_of(self.data, draw))
        return _torch_gradient(parameters, self.apply, x, self.data.labels[draw.rows], self.bfloat16)

    def accuracy(self, state: State, images: LabelledImages) -> Tensor:
        return accuracy(self.network, self.frozen | stacked.join(block=state), images)


class _Stack:
    """The members of `parameters` and a matrix of their gradients as arrays of the same memory, laid out once."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.gradient = torch.zeros_like(parameters.theta)
        self.states = rows(parameters.state)
        self.gradients = rows(parameters.views(self.gradient))

    @staticmethod
    def of(parameters: Parameters, before: _Stack | None) -> _Stack:
        """The one `before` if it is of these parameters, else a new one."""
        return before if before is not None and before.parameters is parameters else _Stack(parameters)


class FusedSource:
    """Source networks, one after another, by the kernels of this package."""

    def __init__(self, architecture: AnyArchitecture, data: LabelledImages) -> None:
        if not fused.supports_source(architecture):
            raise ZooError(f"the fused kernels do not cover the source of {architecture}")
        compiling.ensure()
        self.architecture, self.data = architecture, data
        self.networks: dict[int, fused.SourceNetwork] = {}
        self.stack: _Stack | None = None

    def _network(self, n: int) -> fused.SourceNetwork:
        if n not in self.networks:
            self.networks[n] = fused.SourceNetwork(self.architecture, n)
        return self.networks[n]

    def gradient(self, parameters: Parameters, draw: Draw) -> Tensor:
        network = self._network(draw.rows.shape[1])
        stack = self.stack = _Stack.of(parameters, self.stack)
        labels = self.data.labels.numpy()[draw.rows.numpy()]
        for m, (state, gradient) in enumerate(zip(stack.states, stack.gradients, strict=True)):
            _fill(network.stem, self.data, draw, m)
            network.forward(state, training=True)
            network.backward(state, labels[m], gradient)
        return stack.gradient

    def accuracy(self, state: State, images: LabelledImages) -> Tensor:
        hits = torch.zeros(stacked.size(state), dtype=torch.float64)
        for m, member in enumerate(rows(state)):
            for draw in _in_order(images):
                network = self._network(draw.rows.shape[1])
                _fill(network.stem, images, draw, 0)
                guess = network.forward(member, training=False).argmax(0)
                hits[m] += int((guess == images.labels[draw.rows[0]].numpy()).sum())
        return hits / len(images) if len(images) else torch.full_like(hits, math.nan)


class FusedTarget:
    """Target blocks, one after another, by the kernels of this package."""

    def __init__(self, architecture: Architecture, frozen: State, data: LabelledImages, variants: int) -> None:
        if not fused.supports_target(architecture):
            raise ZooError(f"the fused kernels do not cover the target of {architecture}")
        compiling.ensure()
        self.architecture, self.frozen, self.data = architecture, rows(frozen), data
        self.networks: dict[int, fused.TargetNetwork] = {}
        self.stack: _Stack | None = None
        self.cached = [self._cache(member, variants) for member in self.frozen] if variants else None

    def _network(self, n: int) -> fused.TargetNetwork:
        if n not in self.networks:
            self.networks[n] = fused.TargetNetwork(self.architecture, n)
        return self.networks[n]

    def _cache(self, frozen: Mapping[str, fused.Array], variants: int) -> fused.Array:
        """Stem activations [variants·images, channels, H, W] of all images, and then of their mirror images."""
        cached = np.empty((variants * len(self.data), *self.architecture.activation_shape), np.float32)
        for variant in range(variants):
            for draw in _in_order(self.data, flip=variant == 1):
                network = self._network(draw.rows.shape[1])
                self._activations(network, frozen, self.data, draw, 0)
                start = variant * len(self.data) + int(draw.rows[0, 0])
                cached[start : start + draw.rows.shape[1]] = network.p[:, 1:-1, 1:-1].transpose(3, 0, 1, 2)
        return cached

    @staticmethod
    def _activations(
        network: fused.TargetNetwork, frozen: Mapping[str, fused.Array], data: LabelledImages, draw: Draw, m: int
    ) -> None:
        _fill(network.stem, data, draw, m)
        network.stem.forward(frozen, network.p, training=False)

    def gradient(self, parameters: Parameters, draw: Draw) -> Tensor:
        network = self._network(draw.rows.shape[1])
        stack = self.stack = _Stack.of(parameters, self.stack)
        labels = self.data.labels.numpy()[draw.rows.numpy()]
        for m, (state, gradient) in enumerate(zip(stack.states, stack.gradients, strict=True)):
            if self.cached is not None:
                gather_kernels.gather_activations(
                    self.cached[m], draw.rows.numpy()[m], draw.flips.numpy()[m], len(self.data), network.p
                )
            else:
                self._activations(network, self.frozen[m], self.data, draw, m)
            network.forward(state, self.frozen[m])
            network.backward(state, self.frozen[m], labels[m], gradient)
        return stack.gradient

    def accuracy(self, state: State, images: LabelledImages) -> Tensor:
        hits = torch.zeros(stacked.size(state), dtype=torch.float64)
        for m, (member, frozen) in enumerate(zip(rows(state), self.frozen, strict=True)):
            for draw in _in_order(images):
                network = self._network(draw.rows.shape[1])
                self._activations(network, frozen, images, draw, 0)
                guess = network.forward(member, frozen).argmax(0)
                hits[m] += int((guess == images.labels[draw.rows[0]].numpy()).sum())
        return hits / len(images) if len(images) else torch.full_like(hits, math.nan)


def rows(state: State) -> list[dict[str, fused.Array]]:
    """Each member of a stack as arrays of the same memory."""
    return [fused.arrays({name: value[m] for name, value in state.items()}) for m in range(stacked.size(state))]


def _fill(stem: fused.Stem, data: LabelledImages, draw: Draw, m: int) -> None:
    """Put row `m` of a draw into the stem's input."""
    gather_kernels.gather_images(
        data.images.numpy(), draw.rows.numpy()[m], draw.flips.numpy()[m], draw.shifts.numpy()[m], stem.x
    )


def _in_order(images: LabelledImages, flip: bool = False) -> list[Draw]:
    """All `images` in order as draws of one member."""
    rows = torch.arange(len(images))[None]
    whole = Draw(rows, torch.full_like(rows, flip, dtype=torch.bool), torch.zeros(1, 0, 2, dtype=torch.int64))
    return [whole.batch(start, 128) for start in range(0, len(images), 128)]
