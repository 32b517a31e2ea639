"""CIFAR ResNets, wide and narrow, and the networks that a teacher's or student's configuration names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kt_ray.config import ClassifierConfig, ResNetOptions
from kt_ray.networks import PaperArchitecture


class ResNetBlock(nn.Module):
    """conv 3×3 of `stride`, BN, ReLU, conv 3×3, BN, + shortcut, ReLU.

    The shortcut has no parameters: where the shape changes it takes every `stride`-th position and pads new channels
    with zeros (option A of arXiv 1512.03385).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(x)))
        shortcut = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, before, self.new_channels - before))
        return torch.relu(self.bn2(self.conv2(hidden)) + shortcut)


class Stem(nn.Sequential):
    """conv 3×3 of `stride`, BN, ReLU."""

    def __init__(self, image_channels: int, channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(image_channels, channels, 3, stride, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )


class CifarResNet(nn.Module):
    """ResNet of 6n + 2 layers (arXiv 1512.03385, section 4.2): images [N, C, H, W] in [0, 1] → logits [N, classes].

    `stem`, `stage1`, `stage2`, `stage3` are the layers to take features from: `width`, 2·`width` and 4·`width`
    channels, each stage after the first at half the height and width of the one before.
    """

    def __init__(self, options: ResNetOptions, image_channels: int, classes: int) -> None:
        super().__init__()
        blocks, width = (options.depth - 2) // 6, options.width
        self.stem = Stem(image_channels, width, options.stem_stride)
        self.stage1 = _stage(width, width, 1, blocks)
        self.stage2 = _stage(width, 2 * width, 2, blocks)
        self.stage3 = _stage(2 * width, 4 * width, 2, blocks)
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stage3(self.stage2(self.stage1(self.stem(x))))
        logits: Tensor = self.linear(maps.mean((-2, -1)))
        return logits


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        ResNetBlock(inputs, outputs, stride), *(ResNetBlock(outputs, outputs, 1) for _ in range(blocks - 1))
    )


def build_network(config: ClassifierConfig, image_shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """A fresh network as `config` says, for images of `image_shape` (C, H, W); its start depends on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.family == "resnet":
            return CifarResNet(config.resnet, image_shape[0], classes)
        architecture = PaperArchitecture(config.pair, config.network, image_shape, classes)
        return architecture.source_network() if config.family == "source" else architecture.target_network()
