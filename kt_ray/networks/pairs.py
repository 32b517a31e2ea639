"""The paper's block pairs, and the stem and head of its network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from kt_ray.config import NetworkConfig, PairName
from kt_ray.networks.blocks import AttentionBlock, BasicBlock, MLPBlock, SimpleBlock

BlockFactory = Callable[[NetworkConfig, int], nn.Module]  # widths, stride
READ_STRIDE = 2  # of the head's first layer: it reads every second row and column of a block's output


@dataclass(frozen=True)
class BlockPair:
    """A source block and the block that it is translated into."""

    name: PairName
    source: BlockFactory
    target: BlockFactory


def _basic(network: NetworkConfig, stride: int) -> nn.Module:
    return BasicBlock(network.channels, network.source_hidden, stride)


PAIRS: dict[str, BlockPair] = {
    pair.name: pair
    for pair in (
        BlockPair("basic_to_simple", _basic, lambda n, s: SimpleBlock(n.channels, n.target_hidden, stride=s)),
        BlockPair("basic_to_biased", _basic, lambda n, s: SimpleBlock(n.channels, n.target_hidden, True, s)),
        BlockPair("basic_to_mlp", _basic, lambda n, s: MLPBlock(n.channels, 2 * n.channels, s)),
        BlockPair("basic_to_attention", _basic, lambda n, s: AttentionBlock(n.channels, s)),
    )
}


class Stem(nn.Sequential):
    """conv 3×3 to `channels` without bias, BN, ReLU, max-pool 3×3 stride 2: [N, C, H, W] → [N, channels, H/2, W/2]."""

    def __init__(self, image_channels: int, channels: int) -> None:
        super().__init__(
            OrderedDict(
                conv=nn.Conv2d(image_channels, channels, 3, padding=1, bias=False),
                bn=nn.BatchNorm2d(channels),
                relu=nn.ReLU(),
                pool=nn.MaxPool2d(3, stride=2, padding=1),
            )
        )


class Head(nn.Sequential):
    """conv 1×1 stride 2 without bias, BN, ReLU, flatten, linear: [N, channels, H/2, W/2] → logits [N, classes].

    With `stride` 1 it takes a block's output at the positions that it reads and nothing else.
    """

    def __init__(
        self, channels: int, head_channels: int, positions: int, classes: int, stride: int = READ_STRIDE
    ) -> None:
        super().__init__(
            OrderedDict(
                conv=nn.Conv2d(channels, head_channels, 1, stride, bias=False),
                bn=nn.BatchNorm2d(head_channels),
                relu=nn.ReLU(),
                flatten=nn.Flatten(),
                linear=nn.Linear(head_channels * positions, classes),
            )
        )
