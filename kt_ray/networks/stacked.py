"""Many networks of one architecture evaluated at once, from parameters stacked along axis 0.

A stack is a `dict` from parameter (and buffer) names to tensors [M, …], one row a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

State = dict[str, Tensor]


def stack(states: Iterable[Mapping[str, Tensor]]) -> State:
    """State dicts as one stack. BN's step counters are left out: they change no output."""
    rows = [
        {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")} for state in states
    ]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def by_name(state: Mapping[str, Tensor]) -> State:
    """`state` in the order of its names, for what safetensors read: its order differs from process to process, and a
    loss that sums over tensors would differ in the last bit."""
    return dict(sorted(state.items()))


def part(state: Mapping[str, Tensor], prefix: str) -> State:
    """The entries under `prefix.` ("stem", "source", "target", "head"), with that prefix cut off."""
    return {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(prefix + ".")}


def join(**parts: Mapping[str, Tensor]) -> State:
    """The inverse of `part`: `join(stem=…, head=…)` puts each name under its prefix."""
    return {f"{prefix}.{name}": value for prefix, state in parts.items() for name, value in state.items()}


def take(state: Mapping[str, Tensor], rows: Tensor | slice | int) -> State:
    """The networks at `rows`, int64 or a slice, of a stack; of a single number, that network's own state."""
    return {name: value[rows] for name, value in state.items()}


def chunks(state: Mapping[str, Tensor], count: int) -> Iterator[State]:
    """Yield the networks of a stack, `count` at a time."""
    return (take(state, slice(start, start + count)) for start in range(0, size(state), count))


def concatenate(stacks: Sequence[Mapping[str, Tensor]]) -> State:
    """The networks of several stacks as one."""
    return {name: torch.cat([stack[name] for stack in stacks]) for name in stacks[0]}


def to(state: Mapping[str, Tensor], device: torch.device | str) -> State:
    """The state or stack on `device`."""
    return {name: value.to(device) for name, value in state.items()}


def device(state: Mapping[str, Tensor]) -> torch.device:
    """Return the device that a state or stack is on."""
    return next(iter(state.values())).device


def surroundings(state: Mapping[str, Tensor]) -> State:
    """The entries of the stem and the head around a block, their names as they are."""
    return {name: value for name, value in state.items() if name.startswith(("stem.", "head."))}


def size(state: Mapping[str, Tensor]) -> int:
    """Return the number of networks in a stack."""
    return len(next(iter(state.values())))


def forward(module: nn.Module, state: Mapping[str, Tensor], x: Tensor, *, shared: bool = False) -> Tensor:
    """`module` in evaluation mode with each row of `state`.

    `x` is [M, N, …], a batch a network; with `shared`, [N, …], one batch for all. Returns [M, N, …].
    `module` only gives the structure: its own parameters are not read.
    """
    module.eval()

    def one(row: State, batch: Tensor) -> Tensor:
        output: Tensor = functional_call(module, row, (batch,))
        return output

    result: Tensor = vmap(one, in_dims=(0, None if shared else 0))(dict(state), x)
    return result
