"""The paper's network and its four block pairs (arXiv 2401.05772), as people would register their own."""

from __future__ import annotations

from pydantic import Field, PositiveInt
from torch import nn

from kt_ray.config import NetworkConfig
from kt_ray.config.base import Frozen
from kt_ray.errors import ConfigError
from kt_ray.networks.architecture import PaperArchitecture
from kt_ray.networks.blocks import AttentionBlock, BasicBlock, MLPBlock, SimpleBlock
from kt_ray.networks.layouts import BlockLayout, HiddenLayer, Layer
from kt_ray.registry import register


class PaperOptions(NetworkConfig):
    """Widths, image shape and classes of the paper's network."""

    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 28, 28)
    classes: PositiveInt = 10


@register.network("paper", options=PaperOptions)
class PaperNetwork:
    """stem → block → head, whose only site is `block`."""

    def __init__(self, options: PaperOptions) -> None:
        self.image_shape, self.classes = options.image_shape, options.classes
        self.mean: tuple[float, ...] = ()
        self.deviation: tuple[float, ...] = ()
        self._widths = NetworkConfig(**{name: getattr(options, name) for name in NetworkConfig.model_fields})

    def build(self) -> nn.Module:
        return PaperArchitecture("basic_to_simple", self._widths, self.image_shape, self.classes).source_network()

    def sites(self) -> tuple[str, ...]:
        return ("block",)


class PaperPairOptions(Frozen):
    """Hidden units of the target block."""

    hidden: PositiveInt | None = Field(None, description="half of the source's, for MLP blocks twice the channels")


class _PaperPair:
    """From the paper's source block to one of its target blocks."""

    def __init__(self, options: PaperPairOptions) -> None:
        self.options = options

    def layout(self, source: nn.Module) -> BlockLayout:
        hidden = HiddenLayer((Layer.of(source, "conv1", "bn1"),), (Layer.of(source, "conv2", "bn2"),))
        return BlockLayout((hidden,))

    def target(self, source: nn.Module) -> nn.Module:
        """Return a fresh target block. Raises ConfigError if `source` is another kind of block."""
        if type(source) is not BasicBlock:
            raise ConfigError(
                f"the block is a {type(source).__name__}, the paper's pairs take its BasicBlock; the pair "
                "`halved` takes residual blocks of ResNets"
            )
        return self._target(source.conv1.in_channels, self.options.hidden or max(1, source.conv1.out_channels // 2))

    def _target(self, channels: int, hidden: int) -> nn.Module:
        raise NotImplementedError

    def target_layout(self, target: nn.Module) -> BlockLayout:
        hidden = HiddenLayer((Layer.of(target, "conv1"),), (Layer.of(target, "conv2"),))
        return BlockLayout((hidden,))


@register.pair("basic_to_simple", options=PaperPairOptions)
class BasicToSimple(_PaperPair):
    """To the paper's target: two convolutions without biases."""

    def _target(self, channels: int, hidden: int) -> nn.Module:
        return SimpleBlock(channels, hidden)


@register.pair("basic_to_biased", options=PaperPairOptions)
class BasicToBiased(_PaperPair):
    """To the paper's target with biases."""

    def _target(self, channels: int, hidden: int) -> nn.Module:
        return SimpleBlock(channels, hidden, bias=True)


@register.pair("basic_to_mlp", options=PaperPairOptions)
class BasicToMLP(_PaperPair):
    """To two linear layers over the channels of each position."""

    def _target(self, channels: int, hidden: int) -> nn.Module:
        return MLPBlock(channels, self.options.hidden or 2 * channels)

    def target_layout(self, target: nn.Module) -> BlockLayout:
        return BlockLayout((HiddenLayer((Layer.of(target, "linear1"),), (Layer.of(target, "linear2"),)),))


@register.pair("basic_to_attention", options=PaperPairOptions)
class BasicToAttention(_PaperPair):
    """To self-attention over all positions, whose units are its channels."""

    def _target(self, channels: int, hidden: int) -> nn.Module:
        return AttentionBlock(channels)

    def target_layout(self, target: nn.Module) -> BlockLayout:
        incoming = tuple(Layer.of(target, name) for name in ("query", "key", "value"))
        return BlockLayout((HiddenLayer(incoming, (Layer.of(target, "projection"),)),), rectified=False)
