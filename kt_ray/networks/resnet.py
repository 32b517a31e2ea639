"""CIFAR ResNets in torchvision's names, and the pair that halves the hidden layer of residual blocks."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn

from kt_ray.config.base import Frozen
from kt_ray.errors import ConfigError
from kt_ray.networks.layouts import BlockLayout, HiddenLayer, Layer
from kt_ray.registry import register


class ResNetNetworkOptions(Frozen):
    """A ResNet of 6n + 2 layers (arXiv 1512.03385, section 4.2), shortcuts of another shape projected."""

    depth: PositiveInt = Field(20, description="6n + 2 layers: 8, 14, 20, 32, 56, 110")
    width: PositiveInt = Field(16, description="channels of the first stage")
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = (3, 32, 32)
    classes: PositiveInt = 10
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, value: int) -> int:
        if value < 8 or (value - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 with n of at least 1 (8, 14, 20, 32, 56, 110), got {value}")
        return value


class ResidualBlock(nn.Module):
    """conv 3×3 of `stride`, BN, ReLU, conv 3×3, BN, + input or its projection `downsample`, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride > 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(x)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.bn2(self.conv2(hidden)) + shortcut)


class ResNet(nn.Module):
    """Images [N, C, H, W] to logits [N, classes]; three stages `layer1`, `layer2`, `layer3` of residual blocks."""

    def __init__(self, options: ResNetNetworkOptions) -> None:
        super().__init__()
        width, blocks = options.width, (options.depth - 2) // 6
        self.conv1 = nn.Conv2d(options.image_shape[0], width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, 1, blocks)
        self.layer2 = _stage(width, 2 * width, 2, blocks)
        self.layer3 = _stage(2 * width, 4 * width, 2, blocks)
        self.fc = nn.Linear(4 * width, options.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        maps = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.fc(maps.mean((-2, -1)))
        return logits


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(inputs, outputs, stride), *(ResidualBlock(outputs, outputs) for _ in range(blocks - 1))
    )


@register.network("resnet", options=ResNetNetworkOptions)
class ResNetNetwork:
    """The network `resnet`, all of whose residual blocks are sites."""

    def __init__(self, options: ResNetNetworkOptions) -> None:
        self.options = options
        self.image_shape, self.classes = options.image_shape, options.classes
        self.mean, self.deviation = options.mean, options.deviation

    def build(self) -> nn.Module:
        """Return a fresh ResNet."""
        return ResNet(self.options)

    def sites(self) -> tuple[str, ...]:
        """Return the paths of all residual blocks."""
        blocks = (self.options.depth - 2) // 6
        return tuple(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(blocks))


class HalvedOptions(Frozen):
    """Which modules of a residual block are its layers; torchvision's names unless set."""

    share: float = Field(0.5, gt=0, le=1, description="hidden units of the target over those of the source")
    sites: Literal["all"] | tuple[str, ...] = Field("all", description="of the network's sites, those to translate")
    convolutions: tuple[str, str] = ("conv1", "conv2")
    norms: tuple[str, str] | None = Field(
        ("bn1", "bn2"), description="the batch norm after each; unset: there are none"
    )
    shortcuts: tuple[str, ...] = Field(
        ("downsample", "shortcut"), description="modules that are copied, of those that a block has"
    )


@register.pair("halved", options=HalvedOptions)
class Halved:
    """A residual block with a share of its hidden units, BN folded into biases, shortcut and activations as they are.

    The target is the source block itself with two other convolutions and no BN after them, so that any block that
    computes norm(conv(act(norm(conv(x))))) is served, whatever it adds and applies after that.
    """

    def __init__(self, options: HalvedOptions) -> None:
        self.options = options

    def layout(self, source: nn.Module) -> BlockLayout:
        """Return the layout of a block with its batch norms."""
        first, second = self.options.convolutions
        norms = self.options.norms or (None, None)
        hidden = HiddenLayer((Layer.of(source, first, norms[0]),), (Layer.of(source, second, norms[1]),))
        return self._with_shortcut(source, hidden)

    def target_layout(self, target: nn.Module) -> BlockLayout:
        """Return the layout of a block without them."""
        first, second = self.options.convolutions
        return self._with_shortcut(target, HiddenLayer((Layer.of(target, first),), (Layer.of(target, second),)))

    def target(self, source: nn.Module) -> nn.Module:
        """Return a fresh block with a share of the hidden units of `source`.

        Raises ConfigError if the block computes something else than its layers say, as pre-activation blocks do.
        """
        layout = self.layout(source)
        layers = layout.hidden[0]
        hidden = len(source.state_dict()[layers.incoming[0].weight])
        self._check(source, layout, hidden)
        return self._with_hidden(source, max(1, round(self.options.share * hidden)))

    def _with_hidden(self, source: nn.Module, hidden: int) -> nn.Module:
        target = copy.deepcopy(source)
        for number, path in enumerate(self.options.convolutions):
            old = source.get_submodule(path)
            inputs = old.in_channels if number == 0 else hidden
            outputs = hidden if number == 0 else old.out_channels
            convolution = nn.Conv2d(inputs, outputs, old.kernel_size, old.stride, old.padding)  # type: ignore[arg-type]
            _put(target, path, convolution)
        for path in self.options.norms or ():
            _put(target, path, nn.Identity())
        return target

    def _check(self, source: nn.Module, layout: BlockLayout, hidden: int) -> None:
        """Raise ConfigError unless the block with folded BN and all its units computes what the source does."""
        state = source.state_dict()
        if any(value.is_meta for value in state.values()):
            return
        whole, source = self._with_hidden(source, hidden).eval(), copy.deepcopy(source).eval()
        for module in source.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(generator=torch.Generator().manual_seed(0))
        state = source.state_dict()
        folded = {name: value for name, value in state.items() if layout.is_copied(name)}
        for layer in layout.layers():
            folded[layer.weight], folded[f"{layer.path}.bias"] = layer.folded(state)
        whole.load_state_dict(folded)
        channels = state[layout.hidden[0].incoming[0].weight].shape[1]
        x = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted, got = source(x), whole(x)
        if (wanted - got).abs().max() > 1e-3 * wanted.abs().max().clamp_min(1):
            raise ConfigError(
                f"a {type(source).__name__} does not compute norm(conv(act(norm(conv(x))))) with "
                f"{', '.join(self.options.convolutions)}; register a pair of your own for it"
            )

    def _with_shortcut(self, block: nn.Module, hidden: HiddenLayer) -> BlockLayout:
        own = {name for name, child in block.named_children() if any(True for _ in child.modules())}
        copied = tuple(name for name in self.options.shortcuts if name in own)
        return BlockLayout((hidden,), copied, shortcut=copied[0] if len(copied) == 1 else None)


def _put(block: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(block.get_submodule(parent), leaf, module)
