"""Optimiser steps on all narrowed blocks of a network together, towards what the original's blocks give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from kt_ray.networks.layouts import BlockLayout, Layer
from kt_ray.translation import muon
from kt_ray.translation.observed_blocks import BlockRun, run_blocks
from kt_ray.translation.projected import convolution_features

SEEN = 64  # probes on which second moments of what layers read are taken
UNFOLDED = 8  # of these whose patches are in memory at once
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
    found = dict[str, muon.Affine]()

    def read(path: str, layer: Layer, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        moments, samples = torch.zeros((), device=images.device), 0
        for part in torch.split(given[0], UNFOLDED):
            features = convolution_features(part, layer.kernel, layer.padding, layer.stride)
            moments, samples = moments + features @ features.mT, samples + features.shape[1]
        block = small.get_submodule(path)
        weight, bias = block.get_parameter(layer.weight), block.get_parameter(f"{layer.path}.bias")
        found[f"{path}.{layer.path}"] = muon.Affine(weight, bias, moments / samples)

    with ExitStack() as hooks:
        for path, layout in blocks.items():
            for layer in layout.layers():
                convolution = small.get_submodule(path).get_submodule(layer.path)
                hooks.enter_context(convolution.register_forward_pre_hook(partial(read, path, layer)))
        small(images)
    return list(found.values())


def _spread(wanted: Tensor) -> float:
    """Return the variance of `wanted` [N, C, H, W] within channels, never 0."""
    return max(float(wanted.var((0, 2, 3), correction=0).mean()), 1e-12)
