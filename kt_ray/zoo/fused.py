"""Gradients of one network at a time by the kernels of `kernels.py`: the fastest way on a CPU core.

Forward and backward of the paper's networks written out, batch norm in training mode for a source, and for a
target only what the head reads: its first layer has stride 2, so that a quarter of the block's last convolution
is enough.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kt_ray.networks import Architecture
from kt_ray.zoo import kernels

Array = npt.NDArray[np.float32]
EPS = 1e-5  # torch's default, as is the momentum of the running statistics
MOMENTUM = 0.1
READ = np.s_[:, ::2, ::2]  # the positions of the block's output that the head reads


def zeros(*shape: int) -> Array:
    """A float32 array that starts at a cache line (torch's allocator does that, NumPy's does not)."""
    array: Array = torch.zeros(shape).numpy()
    return array


def tensor(array: Array) -> Tensor:
    """`array` as a tensor of the same memory."""
    return torch.from_numpy(array)


def arrays(state: Mapping[str, Tensor]) -> dict[str, Array]:
    """The tensors of `state` as arrays of the same memory."""
    return {name: value.detach().numpy() for name, value in state.items()}


class Norm:
    """A batch norm over [C, H, W, N], with the moments that its backward pass needs."""

    def __init__(self, channels: int) -> None:
        self.mean, self.inverse, self.variance = zeros(channels), zeros(channels), zeros(channels)

    def measure(self, y: Array, state: Mapping[str, Array], name: str, training: bool) -> tuple[Array, Array]:
        """Scale and shift [C] that normalise y [C, H, W, N] as in training or evaluation mode."""
        if training:
            for c in range(len(y)):
                self.mean[c], self.inverse[c], self.variance[c] = kernels.moments(y[c], EPS)
        return self.affine(state, name, y[0].size, training)

    def affine(self, state: Mapping[str, Array], name: str, count: int, training: bool) -> tuple[Array, Array]:
        """The same from moments that are there already, of `count` values; moves the running statistics."""
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        if training:
            mean += np.float32(MOMENTUM) * (self.mean - mean)
            variance += np.float32(MOMENTUM) * (self.variance * np.float32(count / (count - 1)) - variance)
        else:
            self.mean[:] = mean
            self.inverse[:] = 1 / np.sqrt(variance + np.float32(EPS))
        scale = state[f"{name}.weight"] * self.inverse
        return scale, state[f"{name}.bias"] - self.mean * scale

    def backward(
        self, g: Array, y: Array, state: Mapping[str, Array], name: str, out: Array, gradient: Mapping[str, Array]
    ) -> None:
        """The inside of out [C, H+2, W+2, N] = the gradient before the norm, from g after it; also its parameters'."""
        gamma = state[f"{name}.weight"]
        for c in range(len(g)):
            mean, inverse = self.mean[c], self.inverse[c]
            total, weighted = kernels.norm_sums(g[c], y[c], mean, inverse)
            gradient[f"{name}.bias"][c], gradient[f"{name}.weight"][c] = total, weighted
            kernels.through_norm(g[c], y[c], mean, inverse, gamma[c], total, weighted, g[c].size, out[c])


class Head:
    """The head on the positions of the block's output that it reads: z [channels, h, w, N] to logits, and back."""

    def __init__(self, architecture: Architecture, n: int) -> None:
        _, height, width = architecture.activation_shape
        self.shape = (architecture.network.head_channels, -(-height // 2), -(-width // 2), n)
        self.norm = Norm(self.shape[0])
        self.activation = zeros(self.shape[0], self.shape[1] + 2, self.shape[2] + 2, n)
        self.padded = torch.from_numpy(self.activation)

    def forward(self, state: Mapping[str, Array], z: Array, training: bool) -> Tensor:
        """Logits [classes, N]."""
        self.z = torch.from_numpy(z).reshape(len(z), -1)
        self.y = (tensor(state["head.conv.weight"][:, :, 0, 0]) @ self.z).reshape(self.shape).numpy()
        scale, shift = self.norm.measure(self.y, state, "head.bn", training)
        for c in range(len(self.y)):
            kernels.norm_relu(self.y[c], scale[c], shift[c], self.activation[c])
        self.features = self.padded[:, 1:-1, 1:-1].reshape(-1, self.shape[3])
        return torch.addmm(
            tensor(state["head.linear.bias"])[:, None], tensor(state["head.linear.weight"]), self.features
        )

    def backward(
        self, state: Mapping[str, Array], logits: Tensor, labels: Tensor, gradient: Mapping[str, Array] | None
    ) -> Array:
        """The gradient of the mean cross-entropy by z; with `gradient`, the head's own are put there."""
        channels, n = self.shape[0], self.shape[3]
        dlogits = torch.softmax(logits, 0)
        dlogits[labels, torch.arange(n)] -= 1
        dlogits /= n
        g = tensor(state["head.linear.weight"]).T @ dlogits
        g *= self.features > 0
        if gradient is None:
            dy = g.reshape(channels, -1) * tensor(state["head.bn.weight"] * self.norm.inverse)[:, None]
        else:
            torch.mm(dlogits, self.features.T, out=tensor(gradient["head.linear.weight"]))
            gradient["head.linear.bias"][:] = dlogits.sum(1).numpy()
            self.norm.backward(g.reshape(self.shape).numpy(), self.y, state, "head.bn", self.activation, gradient)
            dy = self.padded[:, 1:-1, 1:-1].reshape(channels, -1)
            gradient["head.conv.weight"][:, :, 0, 0] = (dy @ self.z.T).numpy()
        dz = tensor(state["head.conv.weight"][:, :, 0, 0]).T @ dy
        result: Array = dz.reshape(len(dz), *self.shape[1:]).numpy()
        return result


class Stem:
    """Images to the stem's output [channels, H+2, W+2, N] with a border of zeros."""

    def __init__(self, architecture: Architecture, n: int) -> None:
        image_channels, height, width = architecture.image_shape
        channels, pooled_height, pooled_width = architecture.activation_shape
        self.x = zeros(image_channels, height + 2, width + 2, n)
        self.plane, self.dplane = zeros(1, height, width, n), zeros(1, height + 2, width + 2, n)
        self.best = zeros(channels, pooled_height, pooled_width, n)
        self.where = np.zeros(self.best.shape, np.int8)
        self.norm = Norm(channels)

    def forward(self, state: Mapping[str, Array], out: Array, training: bool) -> None:
        """Fill `out` from the images in `x`."""
        weight, gamma, norm = state["stem.conv.weight"], state["stem.bn.weight"], self.norm
        kernels.stem_forward(
            self.x, weight, self.best, self.where, norm.mean, norm.inverse, norm.variance, gamma, EPS, self.plane,
            training,
        )  # fmt: skip
        scale, shift = norm.affine(state, "stem.bn", self.plane.size, training)
        for c in range(len(out)):
            kernels.norm_relu(self.best[c], scale[c], shift[c], out[c])

    def backward(self, state: Mapping[str, Array], dp: Array, gradient: Mapping[str, Array]) -> None:
        """Gradients from dp [channels, H, W, N], already masked by the ReLU."""
        kernels.stem_backward(
            self.x, state["stem.conv.weight"], dp, self.best, self.where, self.norm.mean, self.norm.inverse,
            state["stem.bn.weight"], gradient["stem.conv.weight"], gradient["stem.bn.weight"],
            gradient["stem.bn.bias"], self.plane, self.dplane,
        )  # fmt: skip


class SourceNetwork:
    """A source network (stem, BasicBlock, head) on batches of `n` images, which are put into `stem.x`."""

    def __init__(self, architecture: Architecture, n: int) -> None:
        channels, height, width = architecture.activation_shape
        hidden = architecture.network.source_hidden
        self.stem, self.head = Stem(architecture, n), Head(architecture, n)
        self.norm1, self.norm2 = Norm(hidden), Norm(channels)
        self.p, self.h = zeros(channels, height + 2, width + 2, n), zeros(hidden, height + 2, width + 2, n)
        self.a1, self.a2 = zeros(hidden, height, width, n), zeros(channels, height, width, n)
        self.z = zeros(channels, -(-height // 2), -(-width // 2), n)
        self.dz = zeros(channels, height, width, n)  # 0 but for the positions that the head reads
        self.dp, self.dh = zeros(channels, height, width, n), zeros(hidden, height, width, n)
        self.d1, self.d2 = zeros(hidden, height + 2, width + 2, n), zeros(channels, height + 2, width + 2, n)

    def forward(self, state: Mapping[str, Array], training: bool) -> Tensor:
        """Logits [classes, N]; in training mode the running statistics of `state` are moved."""
        self.stem.forward(state, self.p, training)
        kernels.convolve(self.p, state["block.conv1.weight"], self.a1)
        scale, shift = self.norm1.measure(self.a1, state, "block.bn1", training)
        for c in range(len(self.a1)):
            kernels.norm_relu(self.a1[c], scale[c], shift[c], self.h[c])
        kernels.convolve(self.h, state["block.conv2.weight"], self.a2)
        scale, shift = self.norm2.measure(self.a2, state, "block.bn2", training)
        np.multiply(self.a2[READ], scale[:, None, None, None], out=self.z)
        self.z += shift[:, None, None, None]
        self.z += self.p[:, 1:-1, 1:-1][READ]
        np.maximum(self.z, 0, out=self.z)
        return self.head.forward(state, self.z, training)

    def backward(
        self, state: Mapping[str, Array], logits: Tensor, labels: Tensor, gradient: Mapping[str, Array]
    ) -> None:
        """Fill `gradient` with that of the mean cross-entropy, after `forward` in training mode."""
        dz = self.head.backward(state, logits, labels, gradient)
        dz *= self.z > 0
        self.dz[READ] = dz
        self.norm2.backward(self.dz, self.a2, state, "block.bn2", self.d2, gradient)
        kernels.kernel_gradient(self.h, self.d2, gradient["block.conv2.weight"])
        kernels.input_gradient(self.d2, state["block.conv2.weight"], self.dh)
        kernels.mask(self.dh, self.h)
        self.norm1.backward(self.dh, self.a1, state, "block.bn1", self.d1, gradient)
        kernels.kernel_gradient(self.p, self.d1, gradient["block.conv1.weight"])
        kernels.input_gradient(self.d1, state["block.conv1.weight"], self.dp)
        self.dp[READ] += dz
        kernels.mask(self.dp, self.p)
        self.stem.backward(state, self.dp, gradient)


class TargetNetwork:
    """A SimpleBlock between a frozen stem and head, on batches of `n` stem activations, which are put into `p`."""

    def __init__(self, architecture: Architecture, n: int) -> None:
        channels, height, width = architecture.activation_shape
        hidden = architecture.network.target_hidden
        self.stem, self.head = Stem(architecture, n), Head(architecture, n)
        self.p, self.h = zeros(channels, height + 2, width + 2, n), zeros(hidden, height + 2, width + 2, n)
        self.a1, self.dh = zeros(hidden, height, width, n), zeros(hidden, height, width, n)
        self.d1 = zeros(hidden, height + 2, width + 2, n)
        self.z = zeros(channels, -(-height // 2), -(-width // 2), n)

    def forward(self, state: Mapping[str, Array], frozen: Mapping[str, Array]) -> Tensor:
        """Logits [classes, N] with the block `state` and the `frozen` stem and head."""
        kernels.convolve(self.p, state["conv1.weight"], self.a1)
        biased = "conv1.bias" in state
        for c in range(len(self.a1)):
            shift = state["conv1.bias"][c] if biased else np.float32(0)
            kernels.norm_relu(self.a1[c], np.float32(1), shift, self.h[c])
        kernels.convolve_read(self.h, state["conv2.weight"], self.z)
        if biased:
            self.z += state["conv2.bias"][:, None, None, None]
        self.z += self.p[:, 1:-1, 1:-1][READ]
        np.maximum(self.z, 0, out=self.z)
        return self.head.forward(frozen, self.z, training=False)

    def backward(
        self, state: Mapping[str, Array], frozen: Mapping[str, Array], logits: Tensor, labels: Tensor,
        gradient: Mapping[str, Array],
    ) -> None:  # fmt: skip
        """Fill `gradient` with that of the mean cross-entropy, after `forward`."""
        dz = self.head.backward(frozen, logits, labels, None)
        dz *= self.z > 0
        kernels.read_gradients(self.h, dz, state["conv2.weight"], self.dh, gradient["conv2.weight"])
        kernels.mask(self.dh, self.h)
        self.d1[:, 1:-1, 1:-1] = self.dh
        kernels.kernel_gradient(self.p, self.d1, gradient["conv1.weight"])
        if "conv1.bias" in state:
            gradient["conv1.bias"][:] = self.dh.sum((1, 2, 3))
            gradient["conv2.bias"][:] = dz.sum((1, 2, 3))


def supports_source(architecture: Architecture) -> bool:
    """Whether the source of this pair is the BasicBlock network written out here."""
    return architecture.pair.startswith("basic_to_")


def supports_target(architecture: Architecture) -> bool:
    """Whether the target of this pair is the SimpleBlock written out here."""
    return architecture.pair in ("basic_to_simple", "basic_to_biased")
