"""One module applied to many members at once, in training mode, from parameters stacked along axis 0.

Every implementation gives the same numbers within rounding; which is fastest depends on the device. On a CPU, torch's
batch norm is less exact with channels last (a source's gradient is then off by a hundredth of its norm), so that
`channels_last` is the same as `grouped` there; `loop` uses it in bfloat16, which rounds as much.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from kt_ray.networks import State, stacked
from kt_ray.networks.blocks import BasicBlock, MLPBlock, SimpleBlock
from kt_ray.networks.pairs import Head, Stem

Implementation = Literal["fused", "loop", "vmap", "grouped", "channels_last", "unfold"]
LAYERS = {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear, nn.Identity}
GROUPED = LAYERS | {nn.Sequential, Stem, Head, BasicBlock, SimpleBlock, MLPBlock}  # anything else runs by vmap
Apply = Callable[[Mapping[str, Tensor], Tensor], Tensor]


class GroupedLinear(nn.Module):
    """`members` linear layers side by side: [..., members·in] → [..., members·out]."""

    def __init__(self, layer: nn.Linear, members: int) -> None:
        super().__init__()
        self.members = members
        self.weight = nn.Parameter(layer.weight.repeat(members, 1))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.repeat(members))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.reshape(self.members, -1, self.weight.shape[1])
        split = x.reshape(-1, self.members, weight.shape[2]).transpose(0, 1)  # [members, rows, in]
        out: Tensor = (split @ weight.transpose(1, 2)).transpose(0, 1).reshape(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class UnfoldedConvolution(nn.Module):
    """A grouped convolution as a batched matmul over unfolded patches: [N, members·in, H, W] → [N, members·out, …]."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.groups, self.kernel = layer.groups, layer.kernel_size
        self.stride, self.padding = layer.stride, layer.padding
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        patches = nn.functional.unfold(x, self.kernel, padding=self.padding, stride=self.stride)  # type: ignore[arg-type]
        patches = patches.reshape(len(x), self.groups, -1, patches.shape[-1])
        weight = self.weight.reshape(self.groups, -1, patches.shape[2])
        height = (x.shape[2] + 2 * int(self.padding[0]) - self.kernel[0]) // self.stride[0] + 1
        out = (weight @ patches).reshape(len(x), len(self.weight), height, -1)
        return out if self.bias is None else out + self.bias[:, None, None]


def can_group(module: nn.Module) -> bool:
    """Whether every layer of `module` treats channels of one member apart from another's when grouped."""
    return all(type(layer) in GROUPED for layer in module.modules())


def grouped(module: nn.Module, members: int, unfold: bool = False) -> nn.Module:
    """A copy of `module` for [N, members·C, H, W]: grouped convolutions, BN over all channels, grouped linears."""
    wide = copy.deepcopy(module)
    for name, layer in list(wide.named_modules()):
        swapped: nn.Module
        if isinstance(layer, nn.Conv2d):
            wide_layer = nn.Conv2d(
                layer.in_channels * members,
                layer.out_channels * members,
                layer.kernel_size,  # type: ignore[arg-type]
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                groups=layer.groups * members,
                bias=layer.bias is not None,
            )
            swapped = UnfoldedConvolution(wide_layer) if unfold else wide_layer
        elif isinstance(layer, nn.BatchNorm2d):
            swapped = nn.BatchNorm2d(layer.num_features * members, layer.eps, layer.momentum)
        elif isinstance(layer, nn.Linear):
            swapped = GroupedLinear(layer, members)
        else:
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(wide.get_submodule(parent), leaf, swapped.train(layer.training))
    return wide


def many(module: nn.Module, members: int, implementation: Implementation, frozen: Sequence[str] = ()) -> Apply:
    """`module` in training mode as a function of a stack and a batch a member: [M, N, …] → [M, N, …].

    BN's running statistics in the stack are updated in place, but for modules at the paths `frozen`, which stay in
    evaluation mode. `module` only gives the structure.
    """
    module = copy.deepcopy(module).train()
    for path, part in module.named_modules():
        part.train(path not in frozen and not path.startswith(tuple(f"{one}." for one in frozen)))
    if implementation in ("grouped", "channels_last", "unfold") and can_group(module):
        wide = grouped(module, members, unfold=implementation == "unfold")
        last = implementation == "channels_last" and members > 1

        def apply_grouped(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
            flat = {name: value.flatten(0, 1) for name, value in state.items()}
            x = x.transpose(0, 1).flatten(1, 2)
            x = x.contiguous(memory_format=torch.channels_last) if last and x.is_cuda else x
            y: Tensor = functional_call(wide, flat, (x,))
            return y.reshape(len(y), members, -1, *y.shape[2:]).transpose(0, 1)

        return apply_grouped

    def one(row: State, x: Tensor) -> Tensor:
        y: Tensor = functional_call(module, row, (x,))
        return y

    if implementation == "loop":

        def apply_loop(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
            if torch.is_autocast_enabled("cpu"):  # bfloat16 is faster with channels last
                state = {name: _channels_last(value) for name, value in state.items()}
            rows = [stacked.take(state, i) for i in range(members)]
            return torch.stack([one(row, x[i]) for i, row in enumerate(rows)])

        return apply_loop
    together = vmap(one)
    return lambda state, x: together(dict(state), x)


def _channels_last(kernels: Tensor) -> Tensor:
    """Kernels [M, O, I, height, width] with I last in memory; other tensors as they are."""
    return kernels.movedim(2, -1).contiguous().movedim(-1, 2) if kernels.dim() == 5 else kernels


def fresh(build: Callable[[], nn.Module], seeds: list[int]) -> State:
    """A stack of newly initialised modules, row i decided by `seeds[i]` alone."""
    states = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            states.append(build().state_dict())
    return stacked.stack(states)
