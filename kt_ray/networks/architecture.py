"""Where the blocks of a zoo sit: what runs before a block, source and target block, and what runs after it.

The paper's network has an `Architecture` written out by hand; any other network is cut at its sites (`sites.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from kt_ray.config import NetworkChoice, NetworkConfig, PairName
from kt_ray.config.code import CodeFile
from kt_ray.networks import stacked
from kt_ray.networks.contracts import ImageShape, make_pair
from kt_ray.networks.layouts import BlockLayout, flat_layout
from kt_ray.networks.pairs import PAIRS, READ_STRIDE, BlockPair, Head, Stem
from kt_ray.networks.stacked import State
from kt_ray.registry import cached


class Architecture(ABC):
    """A block pair in the networks that it sits in, for images of one shape. Compared and hashed by what it describes.

    A network is split into stem → block → head. `read_stride` says which positions of a block's output the head reads:
    with that stride, `source_block` and `target_block` compute these alone, and `head(stride=1)` takes them so.
    """

    pair: str
    network: NetworkConfig | NetworkChoice
    image_shape: ImageShape
    classes: int
    read_stride: int

    @abstractmethod
    def source_block(self, stride: int = 1) -> nn.Module:
        """Return a fresh source block, its output at every `stride`-th row and column."""

    @abstractmethod
    def target_block(self, stride: int = 1) -> nn.Module:
        """Return a fresh target block, its output at every `stride`-th row and column."""

    @abstractmethod
    def stem(self) -> nn.Module:
        """Return a fresh stem: images [N, C, H, W] in [0, 1] to what the block reads."""

    @abstractmethod
    def head(self, stride: int | None = None) -> nn.Module:
        """Return a fresh head: the whole output of a block, or with `stride` 1 what it reads of it, to logits."""

    @abstractmethod
    def source_network(self) -> nn.Sequential:
        """Return a fresh stem → source block → head; parameters are named `stem.…`, `block.…`, `head.…`."""

    def parts(self) -> dict[str, nn.Module]:
        """Return fresh modules by the names that a zoo has for them: stem, source, target, head."""
        return {
            "stem": self.stem(),
            "source": self.source_block(),
            "target": self.target_block(),
            "head": self.head(),
        }

    def target_network(self) -> nn.Sequential:
        """Return a fresh stem → target block → head; parameters are named `stem.…`, `block.…`, `head.…`."""
        return nn.Sequential(OrderedDict(stem=self.stem(), block=self.target_block(), head=self.head()))

    @property
    @abstractmethod
    def activation_shape(self) -> tuple[int, ...]:
        """The shape of what the block reads, without the batch."""

    @abstractmethod
    def layouts(self) -> tuple[BlockLayout, BlockLayout]:
        """Return where source and target block keep their parameters."""

    @property
    def code(self) -> tuple[CodeFile, ...]:
        """The files of code that registered the network or the pair, which another process has to run first."""
        return ()

    @property
    def sites(self) -> tuple[str, ...]:
        """The module path of the block."""
        return ("block",)

    def views(self) -> tuple[Architecture, ...]:
        """Return the architecture at each site: this one alone."""
        return (self,)

    def seen(self, network: State) -> list[tuple[Architecture, State]]:
        """Return each view with a state, or stack, of `source_network` as `stem.…`, `block.…`, `head.…`."""
        return [(self, network)]

    def stored(self, network: State, targets: Sequence[State]) -> State:
        """Return one member as a zoo has it, from a state of `source_network` and the target of each view."""
        (target,) = targets
        return stacked.join(source=stacked.part(network, "block"), target=target) | stacked.surroundings(network)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what `chosen.described` makes this architecture of again, as plain data."""


@dataclass(frozen=True)
class PaperArchitecture(Architecture):
    """The paper's network with one of its block pairs, from widths, image shape (C, H, W) and classes."""

    pair: PairName
    network: NetworkConfig = NetworkConfig()
    image_shape: ImageShape = (1, 28, 28)
    classes: int = 10
    read_stride = READ_STRIDE

    @property
    def _blocks(self) -> BlockPair:
        return PAIRS[self.pair]

    def source_block(self, stride: int = 1) -> nn.Module:
        return self._blocks.source(self.network, stride)

    def target_block(self, stride: int = 1) -> nn.Module:
        return self._blocks.target(self.network, stride)

    def stem(self) -> Stem:
        return Stem(self.image_shape[0], self.network.channels)

    def head(self, stride: int | None = None) -> Head:
        _, height, width = self.image_shape
        positions = -(-height // 4) * -(-width // 4)  # two strides of 2, each rounding up
        stride = READ_STRIDE if stride is None else stride
        return Head(self.network.channels, self.network.head_channels, positions, self.classes, stride)

    def source_network(self) -> nn.Sequential:
        return nn.Sequential(OrderedDict(stem=self.stem(), block=self.source_block(), head=self.head()))

    @property
    def activation_shape(self) -> tuple[int, int, int]:
        _, height, width = self.image_shape
        return self.network.channels, -(-height // 2), -(-width // 2)

    def layouts(self) -> tuple[BlockLayout, BlockLayout]:
        return _paper_layouts(self)

    def describe(self) -> dict[str, Any]:
        network = self.network.model_dump(mode="json")
        return {"pair": self.pair, "network": network, "image_shape": self.image_shape, "classes": self.classes}


@lru_cache(maxsize=64)
def _paper_layouts(architecture: PaperArchitecture) -> tuple[BlockLayout, BlockLayout]:
    pair = make_pair(architecture.pair)
    with torch.device("meta"):
        source, target = architecture.source_block(), architecture.target_block()
    return pair.layout(source) or flat_layout(source), pair.target_layout(target) or flat_layout(target)


@cached(128)
def structure(architecture: Architecture) -> dict[str, nn.Module]:
    """Return stem, source, target and head for `stacked.forward`, made once: their own values mean nothing.

    Blocks give what the head reads, and the head takes it so.
    """
    stride = architecture.read_stride
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return {
            "stem": architecture.stem(),
            "source": architecture.source_block(stride),
            "target": architecture.target_block(stride),
            "head": architecture.head(stride=1),
        }
