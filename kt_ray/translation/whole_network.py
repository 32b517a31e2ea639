"""Translate all residual blocks of a network in forward order: least squares on probes, then a few optimiser steps.

Each block is written on what the already narrower network before it produces, and is to give what the original network
gives there before the block's last activation: so later blocks make up for the errors of earlier ones. Hidden units are
chosen by backward elimination on the normal equations, kernels into them are kept (BN folded), kernels out of them and
biases are fitted by ridge regression (as channel pruning does with data, arXiv 1707.06168). Then all blocks take steps
of Muon together (arXiv 2502.16982), which needs half as many as Adam here.
"""

from __future__ import annotations

import copy
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from kt_ray.errors import CheckpointError
from kt_ray.networks.contracts import layout_widths
from kt_ray.networks.layouts import BlockLayout, Layer
from kt_ray.translation import muon
from kt_ray.translation.projected import convolution_equations, eliminate, fit

ROUNDS = 32  # of elimination: several units at once where more are to go
CHEAP, MOST = 6_000_000, 2.5  # multiply-adds; times the steps of other networks
JUDGED = 1024  # probes on which the two networks' predictions are compared
OFFSET, LARGEST_OFFSET = 64.0, 1e7  # added to a branch so that a block's last ReLU passes everything


@dataclass(frozen=True)
class ResidualSite:
    """A block at a module path of a network, and where large and small block have their two convolutions.

    The block is any module that computes activation(shortcut(x) + norm2(conv2(activation(norm1(conv1(x)))))).
    """

    path: str
    source: BlockLayout
    target: BlockLayout


@dataclass(frozen=True)
class Fitting:
    """How blocks are written: ridge regression on `images` probes, then `steps` on batches of all probes.

    Steps fit the outputs of all blocks and the predictions, these with a weight that grows geometrically from the first
    `divergence` to the second. `learning_rate` is relative to the root mean square of each tensor, `momentum` is the
    share of the mean gradient that a step keeps. `bfloat16` is the precision of steps only (torch.autocast): it pays
    where the processor computes in it, and elsewhere slows them.
    """

    images: int = 192
    ridge: float = 1e-2  # of each feature's own power
    steps: int = 100
    divergence: tuple[float, float] = (0.02, 1.0)
    learning_rate: float = 0.011
    momentum: float = 0.85
    batch: int = 64
    bfloat16: bool = False
    seed: int = 0


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
        _refine(network, small, sites, probes, fitting)
    judged = probes[:JUDGED]
    agreement = float((_logits(small, judged).argmax(1) == _logits(network, judged).argmax(1)).float().mean())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return WholeReport(reports, agreement, time.perf_counter() - began, peak)


@dataclass(frozen=True)
class BlockRun:
    """What blocks were given and gave in a run of their network, by path, and the network's logits."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    logits: Tensor


class _Reached(BaseException):
    """Ends a run of a network at a block. No Exception, which a network's own code could catch."""


def run_blocks(network: nn.Module, paths: Sequence[str], images: Tensor, stop: bool = False) -> BlockRun:
    """Run `network` on `images` and keep what the blocks at `paths` are given and give.

    `stop` ends the run at the first of these blocks, without outputs and logits.
    Raises CheckpointError if the network does not run one of the blocks.
    """
    inputs, outputs, logits = dict[str, Tensor](), dict[str, Tensor](), images.new_zeros(0)

    def before(path: str, given: tuple[Tensor, ...]) -> None:
        inputs[path] = given[0]
        if stop:
            raise _Reached

    with ExitStack() as hooks:
        for path in paths:
            block = network.get_submodule(path)
            _until(hooks, block.register_forward_pre_hook(lambda _, given, path=path: before(path, given)))
            _until(hooks, block.register_forward_hook(lambda _, __, out, path=path: outputs.update({path: out})))
        with suppress(_Reached):
            logits = network(images)
    missing = [path for path in paths if path not in inputs]
    if missing:
        raise CheckpointError(f"the network does not run its block {missing[0]}; leave that site out")
    return BlockRun(inputs, outputs, logits)


def preactivation(block: nn.Module, last: Layer, inputs: Tensor, shortcut_alone: bool = False) -> Tensor:
    """Return a block's output before its last activation, or what its shortcut alone gives; `last` ends its branch.

    The block need not say where its last activation is: with a constant added to the branch, a ReLU passes everything.
    """
    offset = OFFSET
    while True:
        with _branch_plus(block, last, offset, shortcut_alone):
            output: Tensor = block(inputs)
        if output.amin() > 0 or offset > LARGEST_OFFSET or not output.isfinite().all():
            return output - offset
        offset *= 16


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
        _until(hooks, reads.register_forward_pre_hook(lambda _, given: hidden.update(units=given[0])))
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


def _refine(
    network: nn.Module, small: nn.Module, sites: Sequence[ResidualSite], probes: Tensor, fitting: Fitting
) -> None:
    """Take steps on the outputs of all blocks and on the predictions, in the blocks alone.

    Channels come last in memory meanwhile, which processors prefer for convolutions of few channels.
    """
    paths = [site.path for site in sites]
    network, small = (one.to(memory_format=torch.channels_last) for one in (network, small))
    probes = probes.contiguous(memory_format=torch.channels_last)
    first, last = fitting.divergence

    def loss(rows: Tensor, done: float) -> Tensor:
        with torch.autocast(probes.device.type, torch.bfloat16, enabled=fitting.bfloat16):
            with torch.no_grad():
                wanted = run_blocks(network, paths, probes[rows])
            given = run_blocks(small, paths, probes[rows])
        missed = [_missed(given.outputs[path].float(), wanted.outputs[path].float()) for path in paths]
        expected, predicted = wanted.logits.float().log_softmax(1), given.logits.float().log_softmax(1)
        divergence = functional.kl_div(predicted, expected, log_target=True, reduction="batchmean")
        weight: float = first * (last / first) ** done
        return torch.stack(missed).mean() + weight * divergence

    parameters = [one for site in sites for one in _parameters(small.get_submodule(site.path), site.target)]
    muon.descend(parameters, loss, len(probes), fitting)
    small.to(memory_format=torch.contiguous_format)


def _missed(output: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared error of `output` over the variance of `wanted` within channels."""
    spread = wanted.var((0, 2, 3), correction=0).mean()
    return functional.mse_loss(output, wanted) / spread.clamp_min(1e-12)


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


@contextmanager
def _branch_plus(block: nn.Module, last: Layer, offset: float, shortcut_alone: bool) -> Iterator[None]:
    """Add `offset` to what the branch gives, or give it instead."""

    def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.full_like(output, offset) if shortcut_alone else output + offset

    with ExitStack() as hooks:
        _until(hooks, block.get_submodule(last.norm or last.path).register_forward_hook(hook))
        yield


def _until(stack: ExitStack, handle: RemovableHandle) -> None:
    stack.callback(handle.remove)


def _parameters(block: nn.Module, layout: BlockLayout) -> list[nn.Parameter]:
    """Return kernels and biases of a block's convolutions."""
    return [block.get_parameter(name) for layer in layout.layers() for name in (layer.weight, f"{layer.path}.bias")]
