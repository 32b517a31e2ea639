"""Translators over rows of numbers, as MLflow's models take and give them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn

from kt_ray.networks import State

Layout = Sequence[tuple[str, Sequence[int]]]


class FlatTranslator(nn.Module):
    """A translator over flat rows: source blocks [N, P] → target blocks [N, Q], float32.

    Row i is the tensors of `source` (of `target` for the output), flattened and put one after another in that order.
    """

    def __init__(self, translator: Callable[[State], State], source: Layout, target: Layout) -> None:
        super().__init__()
        self.translator = translator
        self.source, self.target = source, target

    def forward(self, parameters: Tensor) -> Tensor:
        written = self.translator(unflat(parameters, self.source))
        return flat({name: written[name] for name, _ in self.target})


def layout(stack: State) -> list[tuple[str, list[int]]]:
    """Return name and shape (without the leading N) of each tensor of a stack, in order."""
    return [(name, list(value.shape[1:])) for name, value in stack.items()]


def flat(stack: State) -> Tensor:
    """Return a stack of blocks as rows [N, P]."""
    return torch.cat([value.flatten(1) for value in stack.values()], dim=1)


def unflat(rows: Tensor, names: Layout) -> State:
    """Return the stack whose tensors, flattened, are `rows` [N, P]."""
    parts = torch.split(rows, [prod(shape) for _, shape in names], dim=1)
    return {name: part.reshape(-1, *shape) for part, (name, shape) in zip(parts, names, strict=True)}
