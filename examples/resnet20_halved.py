"""A CIFAR ResNet-20 in plain PyTorch, told to kt_ray: what its residual blocks are, and how images come to it.

    kt-ray run resnet20_halved.yaml --allow-code
    kt-ray translate models:/resnet20-halved@champion my_resnet20.pth -o small.safetensors --code resnet20_halved.py

One translator is learned at all residual blocks (`pair.site: layer1.1` would name one) and writes all of them.
"""

import torch
from pydantic import BaseModel
from torch import Tensor, nn

import kt_ray as kt


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.downsample(x))


class ResNet20(nn.Module):
    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width]
        for stage in (1, 2, 3):
            rest = (Block(widths[stage], widths[stage], 1) for _ in range(blocks - 1))
            setattr(self, f"layer{stage}", nn.Sequential(Block(*widths[stage - 1 : stage + 1], min(stage, 2)), *rest))
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        logits: Tensor = self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))
        return logits


class Options(BaseModel):
    width: int = 16
    blocks: int = 3


@kt.register.network("resnet20", options=Options)
class Network:
    image_shape, classes = (1, 28, 28), 10
    mean, deviation = (0.1307,), (0.3081,)  # as the checkpoints were trained with

    def __init__(self, options: Options) -> None:
        self.options = options

    def build(self) -> nn.Module:
        return ResNet20(self.options.width, self.options.blocks)

    def sites(self) -> tuple[str, ...]:
        return tuple(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(self.options.blocks))
