"""Translate all residual blocks of a network in forward order: least squares on probes, then a few optimiser steps.

Each block is written on what the already narrower network before it produces, and is to give what the original network
gives there before the block's last activation: so later blocks make up for the errors of earlier ones. Hidden units are
chosen by backward elimination on the normal equations, kernels into them are kept (BN folded), kernels out of them and
biases are fitted by ridge regression (as channel pruning does with data, arXiv 1707.06168). Then all blocks take steps
together.
"""

from __future__ import annotations

import copy
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kt_ray.errors import CheckpointError
from kt_ray.networks.contracts import layout_widths
from kt_ray.networks.layouts import BlockLayout
from kt_ray.translation.block_steps import Steps, take_steps
from kt_ray.translation.observed_blocks import preactivation, run_blocks
from kt_ray.translation.projected import convolution_equations, eliminate, fit

ROUNDS = 16  # of elimination: several units at once where more are to go
CHEAP, MOST = 6_000_000, 2.5  # multiply-adds; times the steps of other networks
JUDGED = 256  # probes on which the two networks' predictions are compared


@dataclass(frozen=True)
class ResidualSite:
    """A block at a module path of a network, and where large and small block have their two convolutions.

    The block is any module that computes activation(shortcut(x) + norm2(conv2(activation(norm1(conv1(x)))))).
    """

    path: str
    source: BlockLayout
    target: BlockLayout


@dataclass(frozen=True)
class Fitting(Steps):
    """How blocks are written: ridge regression on `images` probes, then steps on all probes."""

    images: int = 192
    ridge: float = 1e-2  # of each feature's own power


LEAST_SQUARES = Fitting(steps=0)


def usual_steps(share: float, multiply_adds: int) -> int:
    """Return how many steps pay where blocks keep `share` of their hidden units.

    A network of fewer than `CHEAP` multiply-adds an image gets more, as each step costs less.
    """
    return round(2 * Fitting.steps * (1 - share) * min(MOST, max(1.0, CHEAP / multiply_adds)))


@dataclass(frozen=True)
class SiteReport:
    """What was done at a site. `error` is the share of the variance of the wanted output that is missed on probes."""

    path: str
    hidden_before: int
    hidden_after: int
    error: float
    seconds: float


@dataclass(frozen=True)
class WholeReport:
    """What a translation did: site by site, the share of probes with the original's prediction, and what it took."""

    sites: list[SiteReport]
    agreement: float
    seconds: float
    peak_mib: float


@torch.no_grad()
def translate_blocks(
    network: nn.Module,
    small: nn.Module,
    sites: Sequence[ResidualSite],
    probes: Tensor,
    fitting: Fitting | None = None,
    progress: Callable[[SiteReport], None] | None = None,
) -> WholeReport:
    """Write the blocks of `small` at `sites`, given in forward order.

    Args:
        network: The trained network; it is not changed.
        small: The same with narrower blocks at the sites, and the same parameters elsewhere. It is put into
            evaluation mode.
        sites: Where both have their blocks.
        probes: What the networks take, float [N, C, H, W].
        fitting: How; the defaults if None.
        progress: Called after each site.

    Returns:
        What was done.

    Raises:
        CheckpointError: If a site is no residual block that can be translated, or the network gives NaN on probes.
    """
    began = time.perf_counter()
    fitting = fitting or Fitting()
    network, small = copy.deepcopy(network).eval(), small.eval()
    for site in sites:
        _check(site)
    fitted = probes[: fitting.images]
    given = run_blocks(network, [site.path for site in sites], fitted)
    if not given.logits.isfinite().all():
        raise CheckpointError("the network's outputs on the probes are NaN or infinite; check that it works")
    reports = list[SiteReport]()
    before: Tensor | None = None  # the output of the original's block at the site before
    inputs = fitted
    for site in sites:
        started = time.perf_counter()
        large, block = network.get_submodule(site.path), small.get_submodule(site.path)
        if before is not given.inputs[site.path]:  # something lies between this site and the one before
            inputs = run_blocks(small, [site.path], fitted, stop=True).inputs[site.path]
        wanted = preactivation(large, site.source.layers()[-1], given.inputs[site.path])
        error = write_block(large, block, site, inputs, wanted, fitting.ridge)
        before, inputs = given.outputs[site.path], block(inputs)
        (hidden,), (kept,) = layout_widths(site.source, large), layout_widths(site.target, block)
        reports.append(SiteReport(site.path, hidden, kept, error, time.perf_counter() - started))
        if progress is not None:
            progress(reports[-1])
    if fitting.steps:
        take_steps(network, small, {site.path: site.target for site in sites}, probes, fitting)
    judged = probes[:JUDGED]
    agreement = float((_logits(small, judged).argmax(1) == _logits(network, judged).argmax(1)).float().mean())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return WholeReport(reports, agreement, time.perf_counter() - began, peak)


@torch.no_grad()
def write_block(
    large: nn.Module, small: nn.Module, site: ResidualSite, inputs: Tensor, wanted: Tensor, ridge: float
) -> float:
    """Write into the block `small` the least-squares block of `large`: nearest to `wanted` before its last activation.

    Both blocks read `inputs`. Returns the share of the variance of `wanted` that is missed.
    """
    first, last = site.source.layers()
    hidden = dict[str, Tensor]()
    with ExitStack() as hooks:
        reads = large.get_submodule(last.path)
        hooks.enter_context(reads.register_forward_pre_hook(lambda _, given: hidden.update(units=given[0])))
        skipped = preactivation(large, last, inputs, shortcut_alone=True)
    equations = convolution_equations(hidden["units"], wanted - skipped, last.kernel[0])
    (count,), (width,) = layout_widths(site.source, large), layout_widths(site.target, small)
    if width < count:
        units = eliminate(equations, count, width, ridge, ROUNDS)
    else:
        units = torch.arange(width, device=inputs.device)
    fits = fit(equations, count, units[None], ridge)
    weights, biases = first.folded(large.state_dict())
    kernels = fits.weights[0].reshape(-1, width, *last.kernel)
    assert fits.biases is not None  # the equations have a constant
    into, out = site.target.layers()
    written = {into.weight: weights[units], f"{into.path}.bias": biases[units]}
    written |= {out.weight: kernels, f"{out.path}.bias": fits.biases[0]}
    small.load_state_dict(written, strict=False)
    spread = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    return float(fits.errors[0] / spread.clamp_min(1e-30))


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([network(part) for part in torch.split(images, 256)])


def _check(site: ResidualSite) -> None:
    """Raise CheckpointError unless the convolution that ends a branch reads what it writes, position by position."""
    last = site.source.layers()[-1]
    size = last.kernel[0] if last.kernel else 0
    if last.kernel != (size, size) or size % 2 == 0 or (last.stride, last.padding) != (1, size // 2):
        raise CheckpointError(
            f"{site.path}.{last.path} has kernel {last.kernel}, stride {last.stride} and padding {last.padding}, "
            "expected stride 1 and an odd square kernel padded by half of it"
        )
