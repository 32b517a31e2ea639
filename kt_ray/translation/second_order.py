"""Second-order steps on translated blocks: Levenberg-Marquardt, its equations solved by conjugate gradients.

The matrix is the generalised Gauss-Newton one (Schraudolph 2002; Martens, ICML 2010): J'HJ, with J the Jacobian of the
outputs by a block's values and H the second derivatives of the error by the outputs. It is never formed: a product with
a vector costs two passes back through the block, so that wide blocks are served as well as small ones. All members of
a stack go on at once, each with its own step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 1e-3  # of the curvature along the gradient
LENGTHS = (1.0, 0.5, 0.25)  # parts of a step that are tried; the one of the least error is taken, or none


@dataclass(frozen=True)
class Curvature:
    """Second derivatives of a member's error by each output, and how it is measured.

    `outputs` are [B, …]; `error` maps them to [B]; `times` maps a direction of all outputs to its product with the
    second derivatives, of the same shapes.
    """

    outputs: Callable[[Sequence[Tensor]], list[Tensor]]
    error: Callable[[Sequence[Tensor]], Tensor]
    times: Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]


def newton_step(values: Sequence[Tensor], curvature: Curvature, products: int) -> list[Tensor]:
    """`values` [B, …] of B members after one step, from `products` products with the matrix of each.

    A member whose error no tried length lessens stays as it is; what is not finite counts as no improvement.
    """
    with torch.enable_grad():
        begun = [value.detach().requires_grad_() for value in values]
        outputs = curvature.outputs(begun)
        error = curvature.error(outputs)
        gradient = torch.autograd.grad(error.sum(), begun, retain_graph=True)
        held = [torch.zeros_like(output, requires_grad=True) for output in outputs]
        transposed = torch.autograd.grad(outputs, begun, held, create_graph=True)
    fixed = [output.detach() for output in outputs]

    def matrix(direction: Sequence[Tensor]) -> Sequence[Tensor]:
        moved = torch.autograd.grad(transposed, held, direction, retain_graph=True)
        return torch.autograd.grad(outputs, begun, curvature.times(fixed, moved), retain_graph=True)

    step = _conjugate_gradients(matrix, [-part for part in gradient], products)
    with torch.no_grad():
        best, least = [value.detach() for value in values], error.detach().nan_to_num(nan=torch.inf)
        for length in LENGTHS:
            tried = [value + length * part for value, part in zip(values, step, strict=True)]
            reached = curvature.error(curvature.outputs(tried)).nan_to_num(nan=torch.inf)
            better = reached < least
            best = [torch.where(_along(better, new), new, old) for new, old in zip(tried, best, strict=True)]
            least = torch.minimum(reached, least)
    return best


def _conjugate_gradients(
    matrix: Callable[[Sequence[Tensor]], Sequence[Tensor]], wanted: list[Tensor], products: int
) -> list[Tensor]:
    """Solve `matrix` x = `wanted`, damped, for each member by conjugate gradients with so many products."""
    found = [torch.zeros_like(part) for part in wanted]
    left, direction, power = wanted, wanted, _dot(wanted, wanted)
    damping: Tensor | None = None
    for _ in range(products):
        image = matrix(direction)
        if damping is None:
            damping = DAMPING * _dot(direction, image) / power.clamp_min(1e-30)
        image = [part + _along(damping, part) * old for part, old in zip(image, direction, strict=True)]
        length = power / _dot(direction, image).clamp_min(1e-30)
        found = [part + _along(length, part) * way for part, way in zip(found, direction, strict=True)]
        left = [part - _along(length, part) * moved for part, moved in zip(left, image, strict=True)]
        before, power = power, _dot(left, left)
        turn = power / before.clamp_min(1e-30)
        direction = [part + _along(turn, part) * way for part, way in zip(left, direction, strict=True)]
    return found


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Products of two directions summed over everything that a member has, [B]."""
    return torch.stack([(a * b).flatten(1).sum(1) for a, b in zip(first, second, strict=True)]).sum(0)


def _along(scale: Tensor, like: Tensor) -> Tensor:
    """`scale` [B] in the dimensions of `like` [B, …]."""
    return scale.reshape(-1, *[1] * (like.dim() - 1))
