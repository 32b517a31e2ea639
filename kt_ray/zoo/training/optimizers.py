"""Parameters of many members as one matrix, and the optimisers that move it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from kt_ray.config import PhaseConfig
from kt_ray.networks import State

BUFFERS = ("running_mean", "running_var")


class Parameters:
    """A stack of which the trained tensors are views of one matrix `theta` [M, P], a row a member.

    Tensors that are in `fixed` have its values and are not trained.
    """

    def __init__(self, state: State, fixed: State | None = None) -> None:
        state, fixed = state | (fixed or {}), fixed or {}
        trained = {name: value for name, value in state.items() if not name.endswith(BUFFERS) and name not in fixed}
        self.shapes = {name: value.shape for name, value in trained.items()}
        self.theta = torch.cat([value.flatten(1) for value in trained.values()], dim=1)
        self.state = self.views(self.theta) | {
            name: value.clone() for name, value in state.items() if name not in trained
        }

    def __len__(self) -> int:
        return len(self.theta)

    def views(self, matrix: Tensor) -> State:
        """Return the tensors as views of a matrix like `theta`."""
        parts = matrix.split([math.prod(shape[1:]) for shape in self.shapes.values()], dim=1)  # type: ignore[no-untyped-call]
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def matrix(self, tensors: Iterable[Tensor]) -> Tensor:
        """The inverse of `views`."""
        return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)

    def copy(self) -> State:
        """What the stack holds now."""
        return {name: value.clone() for name, value in self.state.items()}


class Optimizer:
    """SGD with momentum or AdamW over `theta`, as in torch.optim, each member with its own rate and decay.

    `shares` are the shares of the learning rates at all steps. What changes from step to step are tensors of
    `theta`'s device, so that a step can be recorded as a CUDA graph.
    """

    def __init__(self, theta: Tensor, phases: Sequence[PhaseConfig], shares: Sequence[float]) -> None:
        def column(name: str) -> Tensor:
            return torch.tensor([[getattr(phase, name)] for phase in phases], dtype=theta.dtype, device=theta.device)

        self.theta = theta
        self.kind, self.momentum = phases[0].optimizer, phases[0].momentum
        self.rate, self.decay = column("learning_rate"), column("weight_decay")
        self.decays = any(phase.weight_decay != 0 for phase in phases)
        self.first, self.second = torch.zeros_like(theta), torch.zeros_like(theta)
        scales = [
            (share, share / (1 - 0.9**step), math.sqrt(1 - 0.999**step)) for step, share in enumerate(shares, start=1)
        ]
        self.scales = torch.tensor(scales, dtype=theta.dtype).reshape(-1, 3).to(theta.device)

    def step(self, gradient: Tensor, scales: Tensor) -> None:
        """Move `theta` against `gradient` [M, P], which is used up, by the row `scales` of `self.scales`."""
        share, of_first, of_second = scales.unbind()
        if self.kind == "sgd":
            if self.decays:
                gradient.addcmul_(self.decay, self.theta)
            torch.add(gradient, self.first, alpha=self.momentum, out=self.first)
            self.theta.addcmul_(share * self.rate, self.first, value=-1)
            return
        if self.decays:
            self.theta.mul_(1 - share * self.rate * self.decay)
        self.first.lerp_(gradient, 0.1)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        denominator = self.second.sqrt().div_(of_second).add_(1e-8)
        self.theta.addcmul_(of_first * self.rate, self.first / denominator, value=-1)
