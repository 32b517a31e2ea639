"""The cost of a network: parameters and multiply-adds."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameter_count(module: nn.Module) -> int:
    """Trainable numbers in `module`."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions, linear layers and matrix products for one input of `input_shape` (no batch)."""
    counter = FlopCounterMode(display=False)
    training = module.training
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    with counter, torch.no_grad():
        module.eval()(torch.zeros(1, *input_shape, device=device))
    module.train(training)
    return int(counter.get_total_flops()) // 2
