"""CIFAR ResNets (arXiv 1512.03385, section 4.2), and the pair that halves the hidden layer of residual blocks."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from kt_ray.config import ResNetOptions
from kt_ray.config.base import Frozen
from kt_ray.errors import ConfigError
from kt_ray.networks.contracts import replace_module
from kt_ray.networks.layouts import BlockLayout, HiddenLayer, Layer
from kt_ray.registry import register


class PaddedShortcut(nn.Module):
    """Every `stride`-th position, new channels filled with zeros: a shortcut without parameters (the paper's A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, before = stride, (outputs - inputs) // 2
        self.padding = (0, 0, 0, 0, before, outputs - inputs - before)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class ResidualBlock(nn.Module):
    """conv 3×3 of `stride`, BN, ReLU, conv 3×3, BN, + input or, of another shape, what `downsample` makes of it, ReLU.

    `hidden` are the channels between the convolutions, as many as `outputs` if None. `downsample` is a projection with
    BN (the paper's B) or a `PaddedShortcut`.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, projected: bool = True, hidden: int | None = None
    ) -> None:
        super().__init__()
        hidden = hidden or outputs
        self.conv1 = nn.Conv2d(inputs, hidden, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = (
                nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
                if projected
                else PaddedShortcut(inputs, outputs, stride)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(x)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.bn2(self.conv2(hidden)) + shortcut)


class ResNet(nn.Module):
    """Images [N, C, H, W] to logits [N, classes], in torchvision's names and with projections."""

    def __init__(self, options: ResNetOptions, image_channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(image_channels, options.width, 3, options.stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(options.width)
        self.layer1, self.layer2, self.layer3 = _stages(options, projected=True)
        self.fc = nn.Linear(4 * options.width, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.fc(maps.mean((-2, -1)))
        return logits


class Stem(nn.Sequential):
    """conv 3×3 of `stride`, BN, ReLU."""

    def __init__(self, image_channels: int, channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(image_channels, channels, 3, stride, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )


class CifarResNet(nn.Module):
    """Images [N, C, H, W] in [0, 1] to logits [N, classes], with shortcuts that have no parameters.

    `stem`, `stage1`, `stage2`, `stage3` are the layers to take features from: `width`, 2·`width` and 4·`width`
    channels, each stage after the first at half the height and width of the one before.
    """

    def __init__(self, options: ResNetOptions, image_channels: int, classes: int) -> None:
        super().__init__()
        self.stem = Stem(image_channels, options.width, options.stem_stride)
        self.stage1, self.stage2, self.stage3 = _stages(options, projected=False)
        self.linear = nn.Linear(4 * options.width, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stage3(self.stage2(self.stage1(self.stem(x))))
        logits: Tensor = self.linear(maps.mean((-2, -1)))
        return logits


def _stages(options: ResNetOptions, projected: bool) -> list[nn.Sequential]:
    """Return the three stages, of `width`, 2·`width` and 4·`width` channels."""
    stages, inputs = [], options.width
    for outputs in (options.width, 2 * options.width, 4 * options.width):
        hidden = max(1, round(options.hidden * outputs))
        first = ResidualBlock(inputs, outputs, 1 if outputs == options.width else 2, projected, hidden)
        others = (ResidualBlock(outputs, outputs, hidden=hidden) for _ in range((options.depth - 2) // 6 - 1))
        stages.append(nn.Sequential(first, *others))
        inputs = outputs
    return stages


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ResNetNetworkOptions(ResNetOptions):
    """Depth, width and stem of a ResNet, its images and classes."""

    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = (3, 32, 32)
    classes: PositiveInt = 10
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()


class _Registered:
    """A kind of ResNet, all of whose residual blocks are sites."""

    kind: type[ResNet] | type[CifarResNet]
    stage: str

    def __init__(self, options: ResNetNetworkOptions) -> None:
        self.options = options
        self.image_shape, self.classes = options.image_shape, options.classes
        self.mean, self.deviation = options.mean, options.deviation

    def build(self) -> nn.Module:
        return self.kind(self.options, self.image_shape[0], self.classes)

    def sites(self) -> tuple[str, ...]:
        """Return the paths of all residual blocks."""
        blocks = (self.options.depth - 2) // 6
        return tuple(f"{self.stage}{stage}.{block}" for stage in (1, 2, 3) for block in range(blocks))


@register.network("resnet", options=ResNetNetworkOptions)
class ResNetNetwork(_Registered):
    """The network `resnet`: torchvision's names and projections."""

    kind, stage = ResNet, "layer"


@register.network("cifar_resnet", options=ResNetNetworkOptions)
class CifarResNetNetwork(_Registered):
    """The network `cifar_resnet`, as `kt-ray distill` trains it."""

    kind, stage = CifarResNet, "stage"


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
            replace_module(target, path, convolution)
        for path in self.options.norms or ():
            replace_module(target, path, nn.Identity())
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
