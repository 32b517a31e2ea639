"""Gradients of one network at a time by Numba kernels: the fastest way on a CPU core.

Forward and backward of the paper's networks written out, batch norm in training mode for a source, and for a
target only what the head reads: its first layer has stride 2, so that a quarter of the block's last convolution
is enough. What a step needs is laid out once; logits and gradients are overwritten by the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kt_ray.networks import AnyArchitecture, PaperArchitecture
from kt_ray.networks.blocks import BasicBlock, SimpleBlock
from kt_ray.zoo.training import head_kernels, kernels, relu_kernels

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def zeros(*shape: int) -> Array:
    """A float32 array that starts at a cache line (torch's allocator does that, NumPy's does not)."""
    array: Array = torch.zeros(shape).numpy()
    return array


def arrays(state: Mapping[str, Tensor]) -> dict[str, Array]:
    """The tensors of `state` as arrays of the same memory."""
    return {name: value.detach().numpy() for name, value in state.items()}


class Norm:
    """The batch norm `name` of a state, and the ReLU after it, over [C, H, W, N]."""

    def __init__(self, name: str, channels: int) -> None:
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"
        self.running = f"{name}.running_mean", f"{name}.running_var"
        self.mean, self.inverse, self.scale, self.shift = (zeros(channels) for _ in range(4))

    def arrays(self, state: Mapping[str, Array]) -> tuple[Array, ...]:
        """What `kernels.measure` reads and writes beside y."""
        read = [state[name] for name in (self.weight, self.bias, *self.running)]
        return (*read, self.mean, self.inverse, self.scale, self.shift)

    def forward(self, state: Mapping[str, Array], y: Array, training: bool, out: Array) -> None:
        """The inside of `out` from y; in training mode by the moments of y, which move the running ones."""
        kernels.measure(y, *self.arrays(state), training)
        relu_kernels.norm_relu(y, self.scale, self.shift, out)

    def backward(self, g: Array, y: Array, activation: Array, gradient: Mapping[str, Array]) -> None:
        """Turn g, the gradient by the `activation`, into that by y; put the norm's own into `gradient`."""
        kernels.norm_backward(
            g, y, activation, self.mean, self.inverse, self.scale, gradient[self.weight], gradient[self.bias]
        )


class Head:
    """The head on the positions of the block's output that it reads: z [channels, h, w, N] to logits, and back."""

    def __init__(self, architecture: PaperArchitecture, n: int) -> None:
        channels, height, width = architecture.activation_shape
        read = -(-height // 2), -(-width // 2), n
        shape = (architecture.network.head_channels, *read)
        self.norm = Norm("head.bn", shape[0])
        self.y, self.features, self.g = (zeros(*shape) for _ in range(3))
        self.dz = zeros(channels, *read)
        self.logits, self.dlogits = zeros(architecture.classes, n), zeros(architecture.classes, n)
        self.flat, self.flat_g = self.features.reshape(-1, n), self.g.reshape(-1, n)  # of the same memory

    def forward(self, state: Mapping[str, Array], z: Array, training: bool) -> Array:
        """Logits [classes, N]."""
        head_kernels.product(state["head.conv.weight"][:, :, 0, 0], z, self.y)
        self.norm.forward(state, self.y, training, self.features)
        head_kernels.product(state["head.linear.weight"], self.flat, self.logits)
        self.logits += state["head.linear.bias"][:, None]
        return self.logits

    def backward(
        self, state: Mapping[str, Array], z: Array, labels: Labels, gradient: Mapping[str, Array] | None
    ) -> Array:
        """The gradient of the mean cross-entropy by what the ReLU made z of, after `forward`.

        With `gradient`, the head's own are put there; without, the head is frozen and its norm in evaluation mode.
        """
        head_kernels.cross_entropy_gradient(self.logits, labels, self.dlogits)
        head_kernels.product(state["head.linear.weight"].T, self.dlogits, self.flat_g)
        convolution = state["head.conv.weight"][:, :, 0, 0]
        if gradient is None:
            kernels.mask(self.g, self.features)
            convolution = convolution * self.norm.scale[:, None]
        else:
            head_kernels.product_gradient(self.dlogits, self.flat, gradient["head.linear.weight"])
            self.dlogits.sum(1, out=gradient["head.linear.bias"])
            self.norm.backward(self.g, self.y, self.features, gradient)
            head_kernels.product_gradient(self.g, z, gradient["head.conv.weight"][:, :, 0, 0])
        head_kernels.product(convolution.T, self.g, self.dz)
        kernels.mask(self.dz, z)
        return self.dz


class Stem:
    """Images to the stem's output [channels, H+2, W+2, N] with a border of zeros."""

    def __init__(self, architecture: PaperArchitecture, n: int) -> None:
        image_channels, height, width = architecture.image_shape
        channels, pooled_height, pooled_width = architecture.activation_shape
        self.x = zeros(image_channels, height + 2, width + 2, n)
        self.plane, self.dplane = zeros(1, height, width, n), zeros(1, height + 2, width + 2, n)
        self.best = zeros(channels, pooled_height, pooled_width, n)
        self.where = np.zeros(self.best.shape, np.int8)
        self.norm = Norm("stem.bn", channels)

    def forward(self, state: Mapping[str, Array], out: Array, training: bool) -> None:
        """Fill `out` from the images in `x`."""
        norm = self.norm
        kernels.stem_forward(
            self.x, state["stem.conv.weight"], *norm.arrays(state), training, self.plane, self.best, self.where
        )
        relu_kernels.norm_relu(self.best, norm.scale, norm.shift, out)

    def backward(self, state: Mapping[str, Array], dp: Array, gradient: Mapping[str, Array]) -> None:
        """Gradients from dp [channels, H+2, W+2, N], already masked by the ReLU."""
        norm = self.norm
        kernels.stem_backward(
            self.x,
            state["stem.conv.weight"],
            dp,
            self.best,
            self.where,
            norm.mean,
            norm.inverse,
            norm.scale,
            gradient["stem.conv.weight"],
            gradient[norm.weight],
            gradient[norm.bias],
            self.plane,
            self.dplane,
        )


class Network(Protocol):
    """A network on batches of `n` images: `stem.x` are the images, `p` [channels, H+2, W+2, n] the block's input."""

    stem: Stem
    p: Array

    def forward(self, state: Mapping[str, Array], training: bool) -> Array:
        """Return logits [classes, n] for the block's input; training mode moves the running statistics of `state`."""
        ...

    def backward(self, state: Mapping[str, Array], labels: Labels, gradient: Mapping[str, Array]) -> None:
        """Fill `gradient` with that of the mean cross-entropy, after `forward` in training mode."""
        ...


class SourceNetwork:
    """A source network: stem, BasicBlock, head."""

    def __init__(self, architecture: PaperArchitecture, n: int) -> None:
        channels, height, width = architecture.activation_shape
        hidden = architecture.network.source_hidden
        self.stem, self.head = Stem(architecture, n), Head(architecture, n)
        self.norm1, self.norm2 = Norm("block.bn1", hidden), Norm("block.bn2", channels)
        self.p, self.h = zeros(channels, height + 2, width + 2, n), zeros(hidden, height + 2, width + 2, n)
        self.a1, self.a2 = zeros(hidden, height, width, n), zeros(channels, height, width, n)
        self.z = zeros(*self.head.dz.shape)
        self.d, self.dh = zeros(*self.p.shape), zeros(*self.h.shape)  # d is the gradient by a2, later that by p

    def forward(self, state: Mapping[str, Array], training: bool) -> Array:
        kernels.convolve(self.p, state["block.conv1.weight"], self.a1)
        self.norm1.forward(state, self.a1, training, self.h)
        kernels.convolve(self.h, state["block.conv2.weight"], self.a2)
        kernels.measure(self.a2, *self.norm2.arrays(state), training)
        relu_kernels.residual(self.a2, self.norm2.scale, self.norm2.shift, self.p, self.z, 2)
        return self.head.forward(state, self.z, training)

    def backward(self, state: Mapping[str, Array], labels: Labels, gradient: Mapping[str, Array]) -> None:
        dz, norm2 = self.head.backward(state, self.z, labels, gradient), self.norm2
        head_kernels.read_norm_backward(
            dz, self.a2, norm2.mean, norm2.inverse, norm2.scale, self.d, gradient[norm2.weight], gradient[norm2.bias]
        )
        kernels.kernel_gradient(self.h, self.d, gradient["block.conv2.weight"])
        kernels.input_gradient(self.d, state["block.conv2.weight"], self.dh)
        self.norm1.backward(self.dh, self.a1, self.h, gradient)
        kernels.kernel_gradient(self.p, self.dh, gradient["block.conv1.weight"])
        kernels.input_gradient(self.dh, state["block.conv1.weight"], self.d)
        relu_kernels.residual_backward(self.d, dz, self.p)
        self.stem.backward(state, self.d, gradient)


class TargetNetwork:
    """A SimpleBlock (names `conv1.…`, `conv2.…`) between a frozen stem and head, which are never in training mode."""

    def __init__(self, architecture: PaperArchitecture, n: int) -> None:
        channels, height, width = architecture.activation_shape
        hidden = architecture.network.target_hidden
        self.stem, self.head = Stem(architecture, n), Head(architecture, n)
        self.p, self.h = zeros(channels, height + 2, width + 2, n), zeros(hidden, height + 2, width + 2, n)
        self.dh = zeros(*self.h.shape)
        self.a2, self.z = zeros(*self.head.dz.shape), zeros(*self.head.dz.shape)
        self.ones, self.no_bias = np.ones(channels, np.float32), zeros(max(channels, hidden))

    def forward(self, state: Mapping[str, Array], training: bool = False) -> Array:
        kernels.convolve(self.p, state["conv1.weight"], self.h)
        relu_kernels.relu(self.h, state.get("conv1.bias", self.no_bias))
        kernels.convolve_read(self.h, state["conv2.weight"], self.a2)
        relu_kernels.residual(self.a2, self.ones, state.get("conv2.bias", self.no_bias), self.p, self.z, 1)
        return self.head.forward(state, self.z, training=False)

    def backward(self, state: Mapping[str, Array], labels: Labels, gradient: Mapping[str, Array]) -> None:
        dz = self.head.backward(state, self.z, labels, None)
        kernels.read_gradients(self.h, dz, state["conv2.weight"], self.dh, gradient["conv2.weight"])
        kernels.mask(self.dh, self.h)
        kernels.kernel_gradient(self.p, self.dh, gradient["conv1.weight"])
        if "conv1.bias" in state:
            gradient["conv1.bias"][:] = self.dh[:, 1:-1, 1:-1].sum((1, 2, 3))
            gradient["conv2.bias"][:] = dz.sum((1, 2, 3))


def supports_source(architecture: AnyArchitecture) -> TypeGuard[PaperArchitecture]:
    """Whether the source of this pair is the BasicBlock network written out here."""
    return isinstance(architecture, PaperArchitecture) and _is(BasicBlock, architecture.source_block)


def supports_target(architecture: AnyArchitecture) -> TypeGuard[PaperArchitecture]:
    """Whether the target of this pair is the SimpleBlock written out here."""
    return isinstance(architecture, PaperArchitecture) and _is(SimpleBlock, architecture.target_block)


def _is(kind: type[nn.Module], build: Callable[[], nn.Module]) -> bool:
    with torch.device("meta"):
        return type(build()) is kind
