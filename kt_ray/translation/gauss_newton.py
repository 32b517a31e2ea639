"""Gauss-Newton steps on blocks of two 3×3 convolutions, from few random combinations of each image's logits.

The Jacobian of the logits by all of a block's values is written out, for so few rows an image that their products are
small, and the damped equations are solved exactly, in whichever of values and rows there are fewer. The gradient is
that of all logits; the rows sketch the curvature alone (the Newton sketch, arXiv 1505.02250). Everything can be
differentiated, so that probes and damping can be trained through the steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kt_ray.networks import READ_STRIDE, State
from kt_ray.translation.block_runner import PaperSurroundings, Surroundings
from kt_ray.translation.divergences import temperature
from kt_ray.translation.patches import fold_patches, unfold
from kt_ray.translation.units import Layout, Units, to_units, write

FIRST_DAMPING, LAST_DAMPING = 1.0, 0.3  # of the first and last step before training, over each tensor's mean curvature
RATE = 3.0  # logarithms are so many times their parameters, which so move as fast as weights should


class GaussNewton(nn.Module):
    """Steps that lessen the divergence of tempered predictions plus the logits' error over their variance.

    Of each step and tensor the damping, and of each step the temperature and the weight of the logits' error, are
    logarithms that can be learned, as can the combinations of logits [steps, N, rows, classes].
    """

    def __init__(self, steps: int, rows: int, images: int, classes: int, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        biased = layout.unit + layout.channel
        self.names = (*(layer.weight for layer in layout.layers), *(str(layer.bias) for layer in biased))
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(2, (steps, images, rows, classes), generator=generator) * 2.0 - 1
        damping = torch.linspace(FIRST_DAMPING, LAST_DAMPING, steps).log() / RATE
        self.combinations = nn.Parameter(signs / rows**0.5)
        self.log_damping = nn.Parameter(damping[:, None].repeat(1, len(self.names)))
        self.log_temperature = nn.Parameter(torch.zeros(steps))
        self.log_error = nn.Parameter(torch.zeros(steps))

    def forward(self, units: Units, surroundings: Surroundings, step: int) -> Units:
        """`units` after one step; a member whose step is not finite stays as it is."""
        assert isinstance(surroundings, PaperSurroundings)  # `check_supported` has refused all others
        block = write(units, self.layout)
        jacobian = LogitJacobian(block, surroundings)
        slope, factor = self._objective(jacobian.logits, surroundings, step)
        derivatives = jacobian.rows(torch.cat([slope[:, :, None], self.combinations[step] @ factor], dim=2))
        damping = dict(zip(self.names, (RATE * self.log_damping[step]).exp().unbind(), strict=True))
        shares = {  # of a step in each tensor's values, which makes the damping 1 for all
            name: (damping[name] * part[:, :, 1:].square().sum((1, 2)).mean(1)).clamp_min(1e-12).rsqrt()
            for name, part in derivatives.items()
        }
        scaled = torch.cat([part * shares[name][:, None, None, None] for name, part in derivatives.items()], dim=3)
        found = _damped(scaled[:, :, 1:].flatten(1, 2), scaled[:, :, 0].sum(1))
        found = torch.where(found.isfinite().all(1, keepdim=True), found, 0)
        parts = torch.split(found, [part.shape[3] for part in derivatives.values()], dim=1)
        stepped = dict(block)
        for (name, share), part in zip(shares.items(), parts, strict=True):
            stepped[name] = block[name] - (share[:, None] * part).reshape(block[name].shape)
        return to_units(stepped, self.layout)

    def _objective(self, logits: Tensor, surroundings: PaperSurroundings, step: int) -> tuple[Tensor, Tensor]:
        """The objective's slope at `logits` [B, N, Q], and F [B, N, Q, Q] with F'F near its second derivatives.

        F is the sum of both terms' factors, which keeps it at Q rows: F'F is at most twice the sum of their products.
        """
        wanted, classes = surroundings.wanted_logits, logits.shape[2]
        scale = temperature(wanted) * (RATE * self.log_temperature[step]).exp()
        chances = torch.softmax(logits / scale, dim=-1)
        weight = 2 / (classes * surroundings.logit_variance) * (RATE * self.log_error[step]).exp()
        weight = weight[:, None, None]
        slope = (chances - torch.softmax(wanted / scale, dim=-1)) / scale + weight * (logits - wanted)
        root = chances.sqrt() / scale
        spread = torch.diag_embed(root) - root[..., None] * chances[:, :, None]
        return slope, spread + weight.sqrt()[..., None] * torch.eye(classes, device=logits.device)


class LogitJacobian:
    """Derivatives of the `logits` [B, N, Q] of B members on N images by the values of `block`, two 3×3 convolutions."""

    def __init__(self, block: State, surroundings: PaperSurroundings) -> None:
        self.block, self.around = block, surroundings
        batch, channels, *self.size, images = surroundings.activations.shape
        hidden = surroundings.hidden(block)
        features = unfold(hidden, READ_STRIDE)
        outputs = torch.relu(surroundings.skipped + surroundings.response(features, block))
        head = surroundings.features(outputs)
        self.logits = surroundings.logits(head)
        self.batch, self.images = batch, images

        def by_image(values: Tensor, rows: int) -> Tensor:
            """[B, …·N] as [B·N, rows, positions]."""
            return values.reshape(batch, rows, -1, images).movedim(-1, 1).flatten(0, 1)

        self.patches = by_image(surroundings.patches, 9 * channels).transpose(1, 2)
        self.features = by_image(features, features.shape[1]).transpose(1, 2)
        self.active = by_image(hidden > 0, hidden.shape[1])[:, None]
        self.passed = by_image(outputs > 0, channels)[:, None]
        self.read = by_image(head > 0, head.shape[1])[:, None]

    def rows(self, directions: Tensor) -> dict[str, Tensor]:
        """Derivatives of each of m combinations, [B, N, m, Q], of an image's logits, by tensor: [B, N, m, values]."""
        shape = (self.batch, self.images, directions.shape[2], -1)
        linear, kernels = self.around.linear, self.block["conv2.weight"].flatten(2)
        head = (directions.flatten(1, 2) @ linear).reshape(-1, shape[2], *self.read.shape[2:]) * self.read
        outputs = self._back(self.around.head_kernel.flatten(2), head) * self.passed
        hidden = self._back(kernels, outputs).flatten(0, 1)
        hidden = fold_patches(hidden, READ_STRIDE, (len(hidden), hidden.shape[1] // 9, *self.size, 1))
        hidden = hidden.reshape(*outputs.shape[:2], *self.active.shape[2:]) * self.active
        found = {
            "conv1.weight": hidden.flatten(1, 2) @ self.patches,
            "conv2.weight": outputs.flatten(1, 2) @ self.features,
            "conv1.bias": hidden.sum(-1),
            "conv2.bias": outputs.sum(-1),
        }
        return {name: value.reshape(shape) for name, value in found.items() if name in self.block}

    def _back(self, kernels: Tensor, values: Tensor) -> Tensor:
        """`values` [B·N, m, O, L] back through `kernels` [B, O, I], the same for all images: [B·N, m, I, L]."""
        each = kernels.transpose(1, 2)[:, None].expand(-1, len(values) // len(kernels) * values.shape[1], -1, -1)
        found = each.flatten(0, 1) @ values.flatten(0, 1)
        return found.reshape(*values.shape[:2], *found.shape[1:])


def _damped(rows: Tensor, gradient: Tensor) -> Tensor:
    """The solution of (R'R + 1) x = g for rows [B, m, P] and gradients [B, P], by what of m and P is fewer."""
    transposed = rows.transpose(1, 2)
    dual = rows.shape[1] < rows.shape[2]
    matrix = rows @ transposed if dual else transposed @ rows
    factor, _ = torch.linalg.cholesky_ex(matrix + torch.eye(matrix.shape[1], device=rows.device))
    if not dual:
        return torch.cholesky_solve(gradient[..., None], factor)[..., 0]
    weights = torch.cholesky_solve(rows @ gradient[..., None], factor)
    return gradient - (weights.transpose(1, 2) @ rows)[:, 0]
