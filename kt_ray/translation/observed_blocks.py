"""What the blocks of a network are given and give in a run of it, seen by hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kt_ray.errors import CheckpointError
from kt_ray.networks.layouts import Layer

OFFSET, LARGEST_OFFSET = 64.0, 1e7  # added to a branch so that a block's last ReLU passes everything


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
            hooks.enter_context(block.register_forward_pre_hook(lambda _, given, path=path: before(path, given)))
            hooks.enter_context(block.register_forward_hook(lambda _, __, out, path=path: outputs.update({path: out})))
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


@contextmanager
def _branch_plus(block: nn.Module, last: Layer, offset: float, shortcut_alone: bool) -> Iterator[None]:
    """Add `offset` to what the branch gives, or give it instead."""

    def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.full_like(output, offset) if shortcut_alone else output + offset

    with ExitStack() as hooks:
        hooks.enter_context(block.get_submodule(last.norm or last.path).register_forward_hook(hook))
        yield
