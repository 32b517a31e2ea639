"""Residual blocks with fewer hidden units, in networks of anybody's: the same modules, without batch norm in blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kt_ray.errors import CheckpointError
from kt_ray.translation.whole_network import Branch, ResidualSite

NARROWED = Branch(norm1=None, norm2=None)


def residual_sites(network: nn.Module) -> list[ResidualSite]:
    """Return the residual blocks of `network` in the order of its modules, as torchvision and CIFAR ResNets have them:
    modules with conv1, bn1, conv2, bn2 and no conv3.

    Raises CheckpointError if there are none.
    """
    found = []
    for path, module in network.named_modules():
        children = {name for name, _ in module.named_children()}
        if path and {"conv1", "bn1", "conv2", "bn2"} <= children and "conv3" not in children:
            found.append(ResidualSite(path, Branch(), NARROWED))
    if not found:
        raise CheckpointError(
            f"{type(network).__name__} has no residual block with conv1, bn1, conv2 and bn2; name its sites"
        )
    return found


def hidden_widths(network: nn.Module, sites: Sequence[ResidualSite], share: float) -> dict[str, int]:
    """Return `share` of the hidden units at each site, rounded, at least one."""
    layers = {site.path: network.get_submodule(f"{site.path}.{site.source.conv1}") for site in sites}
    return {path: max(1, round(share * len(layer.weight))) for path, layer in layers.items()}  # type: ignore[arg-type]


def narrowed(network: nn.Module, hidden: Mapping[str, int]) -> nn.Module:
    """Return a copy of `network` whose blocks at the paths of `hidden` have so many hidden units.

    Convolutions of these blocks are new, with biases; their batch norms become identities.
    """
    small = copy.deepcopy(network)
    for path, width in hidden.items():
        narrow_block(small.get_submodule(path), width)
    return small


def narrow_block(block: nn.Module, width: int) -> None:
    """Replace a block's convolutions by new ones with `width` hidden units and biases, its norms by identities."""
    first, last = block.get_submodule("conv1"), block.get_submodule("conv2")
    if not isinstance(first, nn.Conv2d) or not isinstance(last, nn.Conv2d):
        raise CheckpointError(f"conv1 and conv2 are {first} and {last}, expected Conv2d")
    block.conv1 = _like(first, first.in_channels, width)
    block.conv2 = _like(last, width, last.out_channels)
    block.bn1 = nn.Identity()
    block.bn2 = nn.Identity()


def _like(old: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    geometry: dict[str, Any] = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
    return nn.Conv2d(inputs, outputs, **geometry).to(old.weight.device, old.weight.dtype)


def builder_text(kind: str, file: str, hidden: Mapping[str, int]) -> str:
    """Return the text of a Python file, with torch alone, that narrows a fresh network as `narrowed` does."""
    widths = "".join(f"    {path!r}: {width},\n" for path, width in hidden.items())
    return f'''"""Narrows a {kind} to what {file} holds. Written by `kt-ray translate`.

    from safetensors.torch import load_file

    network = narrow({kind}(...))  # as it was built for training
    network.load_state_dict(load_file({file!r}))
"""

from torch import nn

HIDDEN = {{  # hidden units of the block at each module path
{widths}}}


def narrow(network: nn.Module) -> nn.Module:
    """Give each block its hidden units; batch norms within blocks are biases now."""
    for path, width in HIDDEN.items():
        block = network.get_submodule(path)
        block.conv1 = like(block.conv1, block.conv1.in_channels, width)
        block.conv2 = like(block.conv2, width, block.conv2.out_channels)
        block.bn1 = nn.Identity()
        block.bn2 = nn.Identity()
    return network


def like(old: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    """Return a convolution of the same geometry with other channels, and biases."""
    return nn.Conv2d(inputs, outputs, old.kernel_size, old.stride, old.padding)
'''
