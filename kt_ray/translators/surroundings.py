"""Members run on shared images with a hole where their block goes: fast enough to run inside a training step.

Convolutions are written as products with unfolded patches, several times as fast on a CPU as many small grouped
convolutions, and a block's output is computed only at the positions that the head's first layer, of stride 2, reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from kt_ray.divergences import spread
from kt_ray.networks import Architecture, State, stacked
from kt_ray.translators.tokens import fold, fold_batch_norm


def stem_activations(members: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Inputs of B members' blocks, [B, C, N, H/2, W/2], from images [N, image channels, H, W] in [0, 1]."""
    kernel, bias = fold(members, "stem.conv.weight", "stem.bn")
    patches = F.unfold(images, 3, padding=1).transpose(0, 1).flatten(1)  # [image channels·9, N·H·W]
    responses = torch.relu(kernel.flatten(2) @ patches + bias[..., None])
    batch, channels = kernel.shape[:2]
    maps = responses.reshape(batch * channels, len(images), *images.shape[2:])
    pooled = F.max_pool2d(maps, 3, stride=2, padding=1)
    return pooled.reshape(batch, channels, *pooled.shape[1:])


class Surroundings:
    """B members with block inputs `activations` [B, C, N, H, W].

    `members` maps the source block's names, `stem.…` and `head.…` to stacks [B, …]. `wanted` [B, C, N·L] are the
    source block's outputs at the L positions that the head reads, `wanted_features` [B, head channels, N·L] what
    the head's first layer and BN make of them, `wanted_logits` [B, N, classes].
    """

    def __init__(self, members: Mapping[str, Tensor], activations: Tensor, architecture: Architecture) -> None:
        with torch.device("meta"):
            self.target = architecture.target_block()
        self.activations = activations
        self.patches = unfold(self.activations, 1)
        self.skipped = self.activations[..., ::2, ::2].flatten(2)
        self.head_kernel, self.head_bias = fold(members, "head.conv.weight", "head.bn")
        self.linear, self.linear_bias = members["head.linear.weight"], members["head.linear.bias"]
        self.wanted = self._convolutions(fold_batch_norm(members))
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

    def outputs(self, block: State) -> Tensor:
        """Outputs of a stack of target blocks at the positions the head reads, [B, C, N·L]."""
        if "conv1.weight" in block:
            return self._convolutions(block)
        activations = self.activations.transpose(1, 2)
        outputs = stacked.forward(self.target, block, activations)[..., ::2, ::2]
        return outputs.transpose(1, 2).flatten(2)

    def features(self, outputs: Tensor) -> Tensor:
        """The head's first convolution and BN on block outputs [B, C, N·L]: [B, head channels, N·L]."""
        return self.head_kernel.flatten(2) @ outputs + self.head_bias[..., None]

    def logits(self, features: Tensor) -> Tensor:
        """The rest of the head on `features`: [B, N, classes]."""
        rectified = torch.relu(features).reshape(*features.shape[:2], self.activations.shape[2], -1)
        rectified = rectified.transpose(1, 2).flatten(2)
        return torch.baddbmm(self.linear_bias[:, None], rectified, self.linear.transpose(1, 2))

    def _convolutions(self, block: Mapping[str, Tensor]) -> Tensor:
        """A block of two 3×3 convolutions, with or without biases."""
        hidden = block["conv1.weight"].flatten(2) @ self.patches
        if "conv1.bias" in block:
            hidden = hidden + block["conv1.bias"][..., None]
        hidden = torch.relu(hidden).reshape(*hidden.shape[:2], *self.activations.shape[2:])
        outputs = torch.baddbmm(self.skipped, block["conv2.weight"].flatten(2), unfold(hidden, 2))
        if "conv2.bias" in block:
            outputs = outputs + block["conv2.bias"][..., None]
        return torch.relu(outputs)


def unfold(x: Tensor, stride: int) -> Tensor:
    """3×3 patches, padded by 1, of [B, C, N, H, W]: [B, C·9, N·L] with L positions an image."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1))
    shifted = [
        padded[..., row : row + height : stride, column : column + width : stride]
        for row in range(3)
        for column in range(3)
    ]
    return torch.stack(shifted, dim=2).flatten(3).flatten(1, 2)
