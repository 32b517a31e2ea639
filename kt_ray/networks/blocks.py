"""Source and target blocks (arXiv 2401.05772, authors' code). All map [N, channels, H, W] to the same shape.

With `stride`, their output is computed at every stride-th row and column only: what a layer of that stride reads of it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """The source block, a ResNet basic block: conv 3×3, BN, ReLU, conv 3×3, BN, + input, ReLU. No conv bias."""

    def __init__(self, channels: int, hidden: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(hidden)) + x[..., :: self.stride, :: self.stride])


class SimpleBlock(nn.Module):
    """The paper's target block: conv 3×3, ReLU, conv 3×3, + input, ReLU; no BN; `bias` for `basic_to_biased`."""

    def __init__(self, channels: int, hidden: int, bias: bool = False, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(hidden, channels, 3, stride, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + x[..., :: self.stride, :: self.stride])

    def last_inputs(self, x: Tensor) -> Tensor:
        """Return the inputs of the last layer at each of L positions, [N, features, L]."""
        return F.unfold(torch.relu(self.conv1(x)), 3, padding=1, stride=self.stride)


class MLPBlock(nn.Module):
    """Two linear layers over the channels at each position (6→12→6 in the paper's code), + input, ReLU."""

    def __init__(self, channels: int, hidden: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., :: self.stride, :: self.stride]
        mixed = self.linear2(self._hidden(x))
        return torch.relu(mixed.movedim(-1, -3) + x)

    def last_inputs(self, x: Tensor) -> Tensor:
        """Return the inputs of the last layer at each of L positions, [N, features, L]."""
        return self._hidden(x[..., :: self.stride, :: self.stride]).movedim(-1, -3).flatten(-2)

    def _hidden(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear1(x.movedim(-3, -1)))


class AttentionBlock(nn.Module):
    """Self-attention over all positions with 1×1 query, key, value and output projections, + input."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.query = nn.Conv2d(channels, channels, 1, bias=False)
        self.key = nn.Conv2d(channels, channels, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.projection = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        read = x[..., :: self.stride, :: self.stride]
        return (self.projection.weight.flatten(1) @ self.last_inputs(x)).reshape(read.shape) + read

    def last_inputs(self, x: Tensor) -> Tensor:
        """Return the inputs of the last layer at each of L positions, [N, features, L]."""
        read = x[..., :: self.stride, :: self.stride]
        query, key, value = _project(self.query, read), _project(self.key, x), _project(self.value, x)
        # Written out because the fused kernel has no vmap rule, and every block is evaluated many members at once.
        weights = torch.softmax(query.transpose(-2, -1) @ key / math.sqrt(x.shape[-3]), dim=-1)
        return value @ weights.transpose(-2, -1)


def _project(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1×1 convolution as one product, [N, C, H·W]: over stacked members far faster than grouped convolutions."""
    return layer.weight.flatten(1) @ x.flatten(-2)
