"""Least squares for a block: some of its hidden units kept, what goes out of them fitted to wanted outputs.

A block is a layer into hidden units, an activation, and a linear layer out of them, whose outputs are wanted to be
something on given inputs. All choices of units are fitted from the same normal equations, as in channel pruning
(arXiv 1707.06168). Nothing here knows a network: features and wanted outputs are matrices whose last dimension are
samples, and leading dimensions are batches.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 1e-3  # of each feature's own power
FEW = 100  # choices of units, up to which each is fitted
INACTIVE = 0.03  # weight of a sample at which a unit is inactive, for the fit of its bias
CHUNK = 16 << 20  # values of unfolded activations at once
WITHOUT_FLOAT64 = {"mps"}  # types of devices; what needs it is done on the CPU there


@dataclass(frozen=True)
class NormalEquations:
    """Sums of products over samples: `gram` [..., F, F] of features, `cross` [..., F, O] of features and outputs,
    `power` [..., O] of outputs. Those of other samples are added with `+`. `constant` says that the last feature is a
    constant, whose weights are biases."""

    gram: Tensor
    cross: Tensor
    power: Tensor
    constant: bool = False

    def __add__(self, other: NormalEquations) -> NormalEquations:
        gram, cross, power = self.gram + other.gram, self.cross + other.cross, self.power + other.power
        return NormalEquations(gram, cross, power, self.constant)

    def take(self, features: Tensor) -> NormalEquations:
        """The equations of n choices of features, int64 [..., n, f], as [..., n, f, f] and [..., n, f, O]."""
        count, outputs = self.cross.shape[-2:]
        pairs = (features[..., :, None] * count + features[..., None, :]).flatten(-3, -2)
        gram = self.gram.flatten(-2).gather(-1, pairs.flatten(-2)).reshape(*features.shape, features.shape[-1])
        rows = features.flatten(-2)[..., None].expand(*features.shape[:-2], -1, outputs)
        cross = self.cross.gather(-2, rows).reshape(*features.shape, outputs)
        return NormalEquations(gram, cross, self.power[..., None, :], self.constant)

    def solve(self, ridge: float = RIDGE) -> Tensor:
        """Weights [..., F, O] of the least squared error, a feature without power getting none.

        Features are scaled to power 1 first, so that `ridge` means the same for each, and dead or collinear ones
        leave the equations well conditioned. Solved in float64, which sums in float32 deserve.
        """
        scaled, cross, scale = self._scaled(ridge)
        solution = torch.cholesky_solve(cross, _cholesky(scaled))
        return (solution * scale[..., None]).to(self.cross)

    def errors(self, solution: Tensor) -> Tensor:
        """Summed squared errors of outputs with weights `solution` [..., F, O]: [..., O]."""
        explained = (2 * self.cross - self.gram @ solution) * solution
        return (self.power - explained.sum(-2)).clamp_min(0)

    def _scaled(self, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
        """In float64, `gram` and `cross` for features of power 1, with `ridge` on the diagonal, and the features'
        scales [..., F]."""
        gram, cross = (
            part.cpu().double() if part.device.type in WITHOUT_FLOAT64 else part.double()
            for part in (self.gram, self.cross)
        )
        power = gram.diagonal(dim1=-2, dim2=-1)
        dead = power <= 1e-10 * power.amax(-1, keepdim=True).clamp_min(1e-30)
        scale = torch.where(dead, 0.0, power.clamp_min(1e-30).rsqrt())
        scaled = gram * scale[..., :, None] * scale[..., None, :]
        diagonal = ridge * torch.eye(power.shape[-1], dtype=power.dtype, device=power.device)
        return scaled + diagonal, cross * scale[..., None], scale


def _cholesky(matrices: Tensor) -> Tensor:
    """Cholesky factors, NaN for a matrix that has none: raising would make the host wait for the device."""
    factors, failed = torch.linalg.cholesky_ex(matrices)
    masked: Tensor = factors.masked_fill(failed[..., None, None] > 0, torch.nan)
    return masked


def normal_equations(features: Tensor, wanted: Tensor, constant: bool = False) -> NormalEquations:
    """The equations of features [..., F, S] and wanted outputs [..., O, S] over S samples."""
    transposed, power = features.transpose(-2, -1), wanted.square().sum(-1)
    return NormalEquations(features @ transposed, features @ wanted.transpose(-2, -1), power, constant)


@dataclass(frozen=True)
class Fits:
    """Last layers fitted to n choices of hidden units, least error first unless said.

    `units` int64 [..., n, K] are kept, `weights` [..., n, O, K, V] are those of each unit's V features, `biases`
    [..., n, O] are None unless a constant was fitted too, `errors` [..., n] are summed squares.
    """

    units: Tensor
    weights: Tensor
    biases: Tensor | None
    errors: Tensor

    def pick(self, choices: Tensor) -> Fits:
        """The m choices at `choices`, int64 [..., m], in that order."""
        biases = None if self.biases is None else _pick(self.biases, choices)
        units, weights, errors = (_pick(part, choices) for part in (self.units, self.weights, self.errors))
        return Fits(units, weights, biases, errors)


def project(equations: NormalEquations, hidden: int, keep: int, *, shortlist: int = 1, ridge: float = RIDGE) -> Fits:
    """Keep `keep` of `hidden` units and fit the last layer to them: the `shortlist` best of all choices if these are
    few (up to `FEW`), else the one that greedy elimination leaves.

    `equations` are those of hidden·V features, a unit's V beside each other, and of a constant, if any, that is always
    kept.
    """
    if math.comb(hidden, keep) > FEW:
        return fit(equations, hidden, eliminate(equations, hidden, keep, ridge)[..., None, :], ridge)
    every = _combinations(hidden, keep, equations.gram.device)
    fits = fit(equations, hidden, every.expand(*equations.gram.shape[:-2], *every.shape), ridge)
    return fits.pick(fits.errors.detach().topk(min(shortlist, len(every)), largest=False).indices)


@functools.cache
def _combinations(hidden: int, keep: int, device: torch.device) -> Tensor:
    """All choices of `keep` of `hidden` units, int64 [n, keep]; copied to a device once."""
    return torch.tensor(list(itertools.combinations(range(hidden), keep)), device=device)


def fit(equations: NormalEquations, hidden: int, units: Tensor, ridge: float = RIDGE) -> Fits:
    """The last layer fitted to each of n choices of hidden units, int64 [..., n, K], in their order."""
    features, keep = equations.gram.shape[-1], units.shape[-1]
    values = (features - equations.constant) // hidden
    read = (units[..., None] * values + torch.arange(values, device=units.device)).flatten(-2)
    if equations.constant:
        read = F.pad(read, (0, 1), value=features - 1)
    chosen = equations.take(read)
    solution = chosen.solve(ridge)
    weights = solution[..., : keep * values, :].transpose(-2, -1)
    weights = weights.reshape(*weights.shape[:-1], keep, values)
    return Fits(units, weights, solution[..., -1, :] if equations.constant else None, chosen.errors(solution).sum(-1))


@torch.no_grad()
def eliminate(
    equations: NormalEquations, hidden: int, keep: int, ridge: float = RIDGE, rounds: int | None = None
) -> Tensor:
    """The `keep` of `hidden` units that greedy backward elimination leaves, in ascending order: int64 [..., keep].

    One unit goes at a time, or, for wide blocks, as many as it takes for at most so many `rounds`.

    The error that leaving a unit out adds to the refitted rest is w' (A⁻¹)ᵤᵤ⁻¹ w for its weights w and its block of
    the inverse; the inverse of the rest follows by one update of its rank. Several units at once are found one by one
    among twice as many of the least error, so that not both of a collinear pair go.
    """
    scaled, cross, _ = equations._scaled(ridge)
    lead, count = scaled.shape[:-2], scaled.shape[-1]
    inverse = torch.cholesky_inverse(_cholesky(scaled)).reshape(-1, count, count)
    cross = cross.reshape(len(inverse), count, -1)
    left = torch.ones(len(inverse), hidden, dtype=torch.bool, device=inverse.device)
    excess = hidden - keep
    at_once = max(1, -(-excess // rounds)) if rounds else 1
    weights, batch = inverse @ cross, torch.arange(len(inverse), device=inverse.device)[:, None]
    values = count // hidden
    for start in range(0, excess, at_once):
        number = min(at_once, excess - start)
        cost = _costs(inverse, weights, left)
        gone = cost.topk(min(2 * number if number > 1 else 1, hidden - start), largest=False).indices
        if number > 1:
            some = (gone[..., None] * values + torch.arange(values, device=gone.device)).flatten(1)
            part = inverse[batch[..., None], some[:, :, None], some[:, None]]
            gone = gone.gather(1, _cheapest(part, weights[batch, some], gone.shape[1], number))
        inverse, weights = _without(inverse, weights, gone, values)
        left[batch, gone] = False
    kept = (~left).byte().argsort(dim=1, stable=True)[:, :keep]  # unlike `nonzero`, of a shape that is known
    return kept.reshape(*lead, keep).to(equations.gram.device)


def _costs(inverse: Tensor, weights: Tensor, left: Tensor) -> Tensor:
    """The error that leaving out each of `left` [B, H] units adds, infinite for the others: [B, H]."""
    hidden = left.shape[1]
    values = inverse.shape[1] // hidden
    places = torch.arange(hidden * values, device=inverse.device).reshape(hidden, values)
    blocks = inverse[:, places[:, :, None], places[:, None]]  # [B, H, V, V]
    blocks = blocks + torch.eye(values, dtype=blocks.dtype, device=blocks.device) * ~left[..., None, None]
    own = weights[:, places]  # [B, H, V, O]
    cost: Tensor = (own * torch.linalg.solve_ex(blocks, own)[0]).sum((-2, -1))
    return cost.masked_fill(~left, torch.inf)


def _without(inverse: Tensor, weights: Tensor, gone: Tensor, values: int) -> tuple[Tensor, Tensor]:
    """Inverse and weights of the rest without the units at `gone` [B, n]; entries of those are zero then."""
    features = (gone[..., None] * values + torch.arange(values, device=gone.device)).flatten(1)
    batch = torch.arange(len(inverse), device=inverse.device)[:, None]
    rows = inverse[batch, features]  # [B, n·V, F]
    block = rows.gather(2, features[:, None].expand(-1, features.shape[1], -1))
    share = torch.linalg.solve_ex(block, rows)[0].transpose(1, 2)
    return inverse - share @ rows, weights - share @ weights[batch, features]


def _cheapest(inverse: Tensor, weights: Tensor, hidden: int, number: int) -> Tensor:
    """The `number` of `hidden` units that go first one by one, int64 [B, number]."""
    left = torch.ones(len(inverse), hidden, dtype=torch.bool, device=inverse.device)
    found = []
    for _ in range(number):
        gone = _costs(inverse, weights, left).argmin(1, keepdim=True)
        inverse, weights = _without(inverse, weights, gone, inverse.shape[1] // hidden)
        left.scatter_(1, gone, False)
        found.append(gone)
    return torch.cat(found, dim=1)


def absorb_biases(kernels: Tensor, biases: Tensor, inputs: Tensor, ridge: float = RIDGE) -> Tensor:
    """Kernels [..., H, f] that do without `biases` [..., H]: the nearest to the rectified responses on `inputs`.

    For each unit, the constant 1 is fitted by what the unit reads, inputs [..., f, S]; samples at which the unit is
    inactive count `INACTIVE` as much. Its bias is replaced by that fit, times the bias.
    """
    inputs = inputs.contiguous()
    active = torch.where(kernels @ inputs + biases[..., None] > 0, 1.0, INACTIVE)
    transposed = inputs.transpose(-2, -1)
    constants = []
    for unit in range(kernels.shape[-2]):
        seen = inputs * active[..., unit, None, :]
        equations = NormalEquations(seen @ transposed, seen.sum(-1, keepdim=True), active[..., unit, None, :].sum(-1))
        constants.append(equations.solve(ridge)[..., 0])
    return kernels + biases[..., None] * torch.stack(constants, dim=-2)


def convolution_features(inputs: Tensor, kernel: tuple[int, ...], padding: int, stride: int) -> Tensor:
    """What a convolution multiplies with its kernels and biases, [C·K + 1, S]: patches of `inputs` [N, C, h, w] of K
    values a channel, S of them in all, and the constant 1."""
    patches = F.unfold(inputs, kernel, padding=padding, stride=stride).movedim(1, 0).flatten(1)
    return torch.cat([patches, patches.new_ones(1, patches.shape[1])])


def convolution_equations(hidden: Tensor, wanted: Tensor, kernel: int, stride: int = 1) -> NormalEquations:
    """The equations of a convolution that reads `hidden` [N, H, h, w] and should give `wanted` [N, O, h', w'].

    Its kernels are `kernel` wide and padded by half of it; the constant of its biases is the last feature. Images are
    unfolded a few at once.
    """
    size = hidden.shape[1] * kernel**2 * wanted.shape[2] * wanted.shape[3]
    total: NormalEquations | None = None
    for start in range(0, len(hidden), max(1, CHUNK // size)):
        images = slice(start, start + max(1, CHUNK // size))
        features = convolution_features(hidden[images], (kernel, kernel), kernel // 2, stride)
        part = normal_equations(features, wanted[images].movedim(1, 0).flatten(1), constant=True)
        total = part if total is None else total + part
    if total is None:
        raise ValueError(f"at least one image is needed, got hidden activations {tuple(hidden.shape)}")
    return total


def _pick(values: Tensor, choices: Tensor) -> Tensor:
    """Of `values` [..., n, …], the entries at `choices` [..., m] of each batch entry: [..., m, …]."""
    axis = choices.dim() - 1
    return values.take_along_dim(choices.reshape(*choices.shape, *[1] * (values.dim() - axis - 1)), axis)
