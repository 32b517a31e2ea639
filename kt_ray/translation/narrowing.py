"""Residual blocks with fewer hidden units, in networks of anybody's: the same modules, without batch norm in blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import nn

from kt_ray.errors import CheckpointError
from kt_ray.networks.contracts import replace_module
from kt_ray.networks.resnet import Halved, HalvedOptions
from kt_ray.translation.whole_network import ResidualSite


def residual_blocks(network: nn.Module) -> tuple[str, ...]:
    """Return the paths of the residual blocks of `network` in the order of its modules, as torchvision and CIFAR
    ResNets have them: modules with conv1, bn1, conv2, bn2 and no conv3.

    Raises CheckpointError if there are none.
    """
    found = []
    for path, module in network.named_modules():
        children = {name for name, _ in module.named_children()}
        if path and {"conv1", "bn1", "conv2", "bn2"} <= children and "conv3" not in children:
            found.append(path)
    if not found:
        raise CheckpointError(
            f"{type(network).__name__} has no residual block with conv1, bn1, conv2 and bn2; name its blocks"
        )
    return tuple(found)


def narrowed(
    network: nn.Module, share: float, paths: Sequence[str] | None = None
) -> tuple[nn.Module, list[ResidualSite]]:
    """Return a copy of `network` with `share` of the hidden units in the blocks at `paths`, and these blocks' sites.

    Convolutions of these blocks are new, with biases; their batch norms become identities, as the pair `halved` has it.
    All residual blocks are taken if `paths` is None. Raises ConfigError for a block that the pair does not serve.
    """
    small, pair, sites = copy.deepcopy(network), Halved(HalvedOptions(share=share)), []
    for path in residual_blocks(network) if paths is None else paths:
        source = network.get_submodule(path)
        target = pair.target(source)
        replace_module(small, path, target)
        sites.append(ResidualSite(path, pair.layout(source), pair.target_layout(target)))
    return small, sites


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
