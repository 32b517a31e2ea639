"""Optimiser steps on all narrowed blocks of a network together, towards what the original's blocks give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kt_ray.networks.layouts import BlockLayout
from kt_ray.translation import muon
from kt_ray.translation.observed_blocks import BlockRun, run_blocks

SEEN = 64  # probes on which second moments of what layers read are taken
AT_ONCE = 256  # probes in a run of the original
REMEMBERED = 1 << 30  # bytes of what the original gives that are kept, at most


@dataclass(frozen=True)
class Steps(muon.Schedule):
    """Steps fit the outputs of all blocks and the predictions.

    The weight of the predictions' divergence grows geometrically from the first `divergence` to the second. `bfloat16`
    is the precision of runs and gradients (torch.autocast): it pays where the processor computes in it, and elsewhere
    slows them.
    """

    divergence: tuple[float, float] = (0.002, 0.5)
    bfloat16: bool = False


@torch.no_grad()
def take_steps(
    network: nn.Module, small: nn.Module, blocks: Mapping[str, BlockLayout], probes: Tensor, steps: Steps
) -> None:
    """Bring `blocks` of `small`, by path, nearer to those of `network` on `probes` [N, C, H, W].

    The loss is the mean of the blocks' squared errors, each over the variance of what is wanted, and the divergence.
    Activations have channels last in memory, which processors prefer for convolutions of few channels.
    """
    paths = list(blocks)
    probes = probes[: steps.steps * steps.batch].contiguous(memory_format=torch.channels_last)
    layers = _layers(small, blocks, probes[:SEEN])

    def run(one: nn.Module, images: Tensor) -> BlockRun:
        with torch.autocast(probes.device.type, torch.bfloat16, enabled=steps.bfloat16):
            return run_blocks(one, paths, images)

    wanted_of = _remembered(lambda images: run(network, images), probes)
    some = wanted_of(torch.arange(min(AT_ONCE, len(probes)), device=probes.device))
    scales = {path: 2 / (len(paths) * _spread(output.float())) for path, output in some.outputs.items()}
    first, last = steps.divergence

    def loss(rows: Tensor, done: float) -> Tensor:
        """Return the weighted divergence; the gradients of squared errors are added where they arise, at no cost."""
        with torch.no_grad():
            wanted = wanted_of(rows)
        given = run(small, probes[rows])
        for path, output in given.outputs.items():
            _pull(output, wanted.outputs[path], scales[path] / output.numel())
        expected, predicted = wanted.logits.float().log_softmax(1), given.logits.float().log_softmax(1)
        weight: float = first * (last / first) ** done
        return weight * functional.kl_div(predicted, expected, log_target=True, reduction="batchmean")

    muon.descend(layers, loss, len(probes), steps)


def _pull(output: Tensor, wanted: Tensor, scale: float) -> None:
    """Add `scale` times what `output` misses to its gradient."""
    missed = output.detach() - wanted
    output.register_hook(lambda gradient: gradient.add(missed, alpha=scale))  # type: ignore[no-untyped-call]


def _remembered(run: Callable[[Tensor], BlockRun], probes: Tensor) -> Callable[[Tensor], BlockRun]:
    """Return what gives outputs and logits for rows of `probes`: run once if there is room for all, else each time."""
    first = run(probes[:1])
    if len(probes) * sum(one.nbytes for one in (*first.outputs.values(), first.logits)) > REMEMBERED:
        return lambda rows: run(probes[rows])
    parts = [run(part) for part in torch.split(probes, AT_ONCE)]
    outputs = {path: torch.cat([part.outputs[path] for part in parts]) for path in first.outputs}
    logits = torch.cat([part.logits for part in parts])
    return lambda rows: BlockRun({}, {path: output[rows] for path, output in outputs.items()}, logits[rows])


def _layers(small: nn.Module, blocks: Mapping[str, BlockLayout], images: Tensor) -> list[muon.Affine]:
    """Return the blocks' convolutions, with the second moments of what they read when `small` runs on `images`."""
    found = dict[nn.Module, muon.Affine]()

    def read(layer: nn.Conv2d, given: tuple[Tensor, ...]) -> None:
        assert layer.bias is not None
        assert not isinstance(layer.padding, str)
        moments, samples = torch.zeros((), device=images.device), 0
        for part in torch.split(given[0], 8):
            patches = functional.unfold(part, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            patches = patches.movedim(1, 0).flatten(1)
            patches = torch.cat([patches, patches.new_ones(1, patches.shape[1])])
            moments, samples = moments + patches @ patches.mT, samples + patches.shape[1]
        found[layer] = muon.Affine(layer.weight, layer.bias, moments / samples)

    with ExitStack() as hooks:
        for path, layout in blocks.items():
            for layer in layout.layers():
                convolution = small.get_submodule(path).get_submodule(layer.path)
                hooks.enter_context(convolution.register_forward_pre_hook(read))
        small(images)
    return list(found.values())


def _spread(wanted: Tensor) -> float:
    """Return the variance of `wanted` [N, C, H, W] within channels, never 0."""
    return max(float(wanted.var((0, 2, 3), correction=0).mean()), 1e-12)
