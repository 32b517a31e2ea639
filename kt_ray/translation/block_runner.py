"""Members run on shared images with a hole where their block goes: fast enough to run inside a training step.

Convolutions are written as products with unfolded patches, several times as fast on a CPU as many small grouped
convolutions, and a block's output is computed only at the positions that the head's first layer, of stride 2, reads.
Images lie last, so that every shift of a map moves whole rows of neighbouring numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kt_ray.networks import READ_STRIDE, Architecture, State, stacked
from kt_ray.networks.blocks import SimpleBlock
from kt_ray.translation.divergences import spread
from kt_ray.translation.units import fold, fold_batch_norm


def stem_activations(members: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Inputs of B members' blocks, [B, C, H/2, W/2, N], from images [N, image channels, H, W] in [0, 1]."""
    kernel, bias = fold(members, "stem.conv.weight", "stem.bn")
    patches = F.unfold(images, 3, padding=1).permute(1, 2, 0).flatten(1)  # [image channels·9, H·W·N]
    responses = torch.relu(torch.baddbmm(bias[..., None], kernel.flatten(2), patches.expand(len(kernel), -1, -1)))
    return _pooled(_pooled(responses.reshape(*kernel.shape[:2], *images.shape[2:], len(images)), 2), 3)


def _pooled(x: Tensor, axis: int) -> Tensor:
    """The greatest of three neighbours along `axis`, at every second place; values are never negative."""
    size = x.shape[axis]
    middle, right = (x.narrow(axis, start, size - start)[_every_second(axis)] for start in (0, 1))
    count = middle.shape[axis]
    both = torch.maximum(middle.narrow(axis, 0, right.shape[axis]), right)
    if right.shape[axis] < count:
        both = torch.cat([both, middle.narrow(axis, count - 1, 1)], dim=axis)
    left = right.narrow(axis, 0, count - 1)
    return torch.cat([both.narrow(axis, 0, 1), torch.maximum(both.narrow(axis, 1, count - 1), left)], dim=axis)


def _every_second(axis: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(None, None, 2),)


class Surroundings:
    """B members with block inputs `activations` [B, C, H, W, N].

    `members` maps the source block's names, `stem.…` and `head.…` to stacks [B, …]. At the L positions that the head
    reads, `wanted` [B, C, L·N] are the source block's outputs, `wanted_response` what it adds to its input before the
    last ReLU, `wanted_features` [B, head channels, L·N] what the head's first layer and BN make of the outputs.
    `wanted_logits` are [B, N, classes].
    """

    def __init__(self, members: Mapping[str, Tensor], activations: Tensor, architecture: Architecture) -> None:
        with torch.device("meta"):
            self.target = architecture.target_block(READ_STRIDE)
        self.activations = activations
        self.patches = unfold(activations, 1)
        self.skipped = activations[:, :, ::READ_STRIDE, ::READ_STRIDE].flatten(2)
        self.head_kernel, self.head_bias = fold(members, "head.conv.weight", "head.bn")
        self.linear, self.linear_bias = members["head.linear.weight"], members["head.linear.bias"]
        self.wanted_response = self._response(fold_batch_norm(members))
        self.wanted = torch.relu(self.skipped + self.wanted_response)
        self.wanted_features = self.features(self.wanted)
        self.wanted_logits = self.logits(self.wanted_features)

    @cached_property
    def feature_variance(self) -> Tensor:
        """Of `wanted_features`, [B]."""
        return spread(self.wanted_features)

    @cached_property
    def logit_variance(self) -> Tensor:
        """Of `wanted_logits`, [B]."""
        return spread(self.wanted_logits)

    @cached_property
    def inputs(self) -> Tensor:
        """`activations` as modules take them, [B, N, C, H, W]."""
        return self.activations.movedim(-1, 1).contiguous()

    def outputs(self, block: State) -> Tensor:
        """Outputs of a stack of target blocks at the positions the head reads, [B, C, L·N]."""
        if type(self.target) is SimpleBlock:
            return torch.relu(self.skipped + self._response(block))
        return stacked.forward(self.target, block, self.inputs).movedim(1, -1).flatten(2)

    def features(self, outputs: Tensor) -> Tensor:
        """The head's first convolution and BN on block outputs [B, C, L·N]: [B, head channels, L·N]."""
        return torch.baddbmm(self.head_bias[..., None], self.head_kernel.flatten(2), outputs)

    def logits(self, features: Tensor) -> Tensor:
        """The rest of the head on `features`: [B, N, classes]."""
        rectified = torch.relu(features).reshape(len(features), -1, self.activations.shape[-1])
        return torch.baddbmm(self.linear_bias[..., None], self.linear, rectified).transpose(1, 2)

    def last_inputs(self, block: State) -> Tensor:
        """Return the inputs of the last layer of a stack of target blocks, [B, F, L·N], unit after unit."""
        if type(self.target) is SimpleBlock:
            return unfold(self.hidden(block), READ_STRIDE)
        features = stacked.forward(_LastInputs(self.target), stacked.join(block=block), self.inputs)  # [B, N, F, L]
        return features.movedim(1, -1).flatten(2)

    def _response(self, block: Mapping[str, Tensor]) -> Tensor:
        """Return what a block of two 3×3 convolutions, with or without biases, adds to its input: [B, C, L·N]."""
        return self.response(unfold(self.hidden(block), READ_STRIDE), block)

    def response(self, features: Tensor, block: Mapping[str, Tensor]) -> Tensor:
        """Return what such a block's last layer makes of `features` [B, H·9, L·N]: [B, C, L·N]."""
        kernels = block["conv2.weight"].flatten(2)
        if "conv2.bias" in block:
            return torch.baddbmm(block["conv2.bias"][..., None], kernels, features)
        return kernels @ features

    def hidden(self, block: Mapping[str, Tensor]) -> Tensor:
        """The rectified hidden units of such a block, [B, H, height, width, N]."""
        kernels = block["conv1.weight"].flatten(2)
        if "conv1.bias" in block:
            hidden = torch.baddbmm(block["conv1.bias"][..., None], kernels, self.patches)
        else:
            hidden = kernels @ self.patches
        return torch.relu(hidden).reshape(*hidden.shape[:2], *self.activations.shape[2:])


class _LastInputs(nn.Module):
    """A target block up to its last layer."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.block.last_inputs(x)  # type: ignore[operator]
        return features


def unfold(x: Tensor, stride: int) -> Tensor:
    """3×3 patches, padded by 1, of [B, C, H, W, N]: [B, C·9, L·N] with L positions an image."""
    patches: Tensor = _Unfold.apply(x, stride)
    return patches


def fold_patches(patches: Tensor, stride: int, shape: Sequence[int]) -> Tensor:
    """Return maps of `shape`, (B, C, H, W, N), with patches summed into their places: the transpose of `unfold`."""
    maps: Tensor = _Fold.apply(patches, stride, torch.Size(shape))
    return maps


class _Unfold(torch.autograd.Function):
    """Gathers patches. Autograd's own gradient of nine slices would fill nine maps with zeros first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        ctx.stride, ctx.shape = stride, x.shape
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        return torch.stack(_shifted(padded, stride), dim=2).flatten(3).flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return fold_patches(gradient, ctx.stride, ctx.shape), None


class _Fold(torch.autograd.Function):
    """Adds patches up where they came from: the transpose of `_Unfold`, and its gradient the other's value."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, stride: int, shape: torch.Size) -> Tensor:
        ctx.stride = stride
        batch, channels, height, width, images = shape
        padded = patches.new_zeros(batch, channels, height + 2, width + 2, images)
        places = _shifted(padded, stride)
        parts = patches.reshape(batch, channels, 9, *places[0].shape[2:]).unbind(2)
        for place, part in zip(places, parts, strict=True):
            place += part
        return padded[:, :, 1:-1, 1:-1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return unfold(gradient, ctx.stride), None, None


def _shifted(padded: Tensor, stride: int) -> list[Tensor]:
    """Views of [B, C, H + 2, W + 2, N], one for each place in a 3×3 kernel."""
    height, width = padded.shape[2] - 2, padded.shape[3] - 2
    return [
        padded[:, :, row : row + height : stride, column : column + width : stride]
        for row in range(3)
        for column in range(3)
    ]
