"""Members run on shared images with a hole where their block goes: fast enough to run inside a training step.

Convolutions are written as products with unfolded patches, several times as fast on a CPU as many small grouped
convolutions, and a block's output is computed only at the positions that the head's first layer, of stride 2, reads.
Images lie last, so that every shift of a map moves whole rows of neighbouring numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kt_ray.networks import READ_STRIDE, Architecture, PaperArchitecture, State, stacked, structure
from kt_ray.networks.blocks import SimpleBlock
from kt_ray.translation.divergences import spread
from kt_ray.translation.patches import read_by, unfold
from kt_ray.translation.units import Layout, fold, layouts


def stem_activations(members: Mapping[str, Tensor], images: Tensor, architecture: Architecture) -> Tensor:
    """Inputs of B members' blocks, [B, C, …, N], from images [N, image channels, H, W] in [0, 1]."""
    if not isinstance(architecture, PaperArchitecture):
        stems = stacked.part(members, "stem")
        return stacked.forward(structure(architecture)["stem"], stems, images, shared=True).movedim(1, -1)
    kernel, bias = fold(members, "stem.conv", "stem.bn")
    patches = F.unfold(images, 3, padding=1).permute(1, 2, 0).flatten(1)  # [image channels·9, H·W·N]
    responses = torch.relu(torch.baddbmm(bias[..., None], kernel.flatten(2), patches.expand(len(kernel), -1, -1)))
    return _pooled(_pooled(responses.reshape(*kernel.shape[:2], *images.shape[2:], len(images)), 2), 3)


def _pooled(x: Tensor, axis: int) -> Tensor:
    """The greatest of three neighbours along `axis`, at every second place; values are never negative."""
    size, every_second = x.shape[axis], (slice(None),) * axis + (slice(None, None, 2),)
    middle, right = (x.narrow(axis, start, size - start)[every_second] for start in (0, 1))
    count = middle.shape[axis]
    both = torch.maximum(middle.narrow(axis, 0, right.shape[axis]), right)
    if right.shape[axis] < count:
        both = torch.cat([both, middle.narrow(axis, count - 1, 1)], dim=axis)
    left = right.narrow(axis, 0, count - 1)
    return torch.cat([both.narrow(axis, 0, 1), torch.maximum(both.narrow(axis, 1, count - 1), left)], dim=axis)


class Surroundings(ABC):
    """B members with block inputs `activations` [B, C, …, N].

    At the L positions that the head reads, `wanted` [B, C, L·N] are the source block's outputs, `wanted_response` what
    it adds to its input, or to its shortcut's output `skipped`, before the last ReLU, `wanted_features` what the head's
    first layer and BN make of the outputs, or the outputs themselves. `wanted_logits` are [B, N, classes]. `patches`
    [B, C·K, L'·N] are what a hidden unit of the source reads at each of L' positions.
    """

    activations: Tensor
    patches: Tensor
    skipped: Tensor
    wanted_response: Tensor
    wanted: Tensor
    wanted_features: Tensor
    wanted_logits: Tensor

    @abstractmethod
    def outputs(self, block: State) -> Tensor:
        """Outputs of a stack of target blocks at the positions the head reads, [B, C, L·N]."""

    @abstractmethod
    def features(self, outputs: Tensor) -> Tensor:
        """Return the outputs of the head's first layer, or block outputs if it is unknown: [B, channels, L·N]."""

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """The rest of the head on `features`: [B, N, classes]."""

    @abstractmethod
    def last_inputs(self, block: State) -> Tensor:
        """Return the inputs of the last layer of a stack of target blocks, [B, F, L·N], unit after unit."""

    @cached_property
    def feature_variance(self) -> Tensor:
        """Of `wanted_features`, [B]."""
        return spread(self.wanted_features)

    @cached_property
    def logit_variance(self) -> Tensor:
        """Of `wanted_logits`, [B]."""
        return spread(self.wanted_logits)

    @cached_property
    def inputs(self) -> Tensor:
        """`activations` as modules take them, [B, N, C, H, W]."""
        return self.activations.movedim(-1, 1).contiguous()


def surround(members: Mapping[str, Tensor], activations: Tensor, architecture: Architecture) -> Surroundings:
    """The surroundings of `members`, which map the source block's names, `stem.…` and `head.…` to stacks [B, …]."""
    if isinstance(architecture, PaperArchitecture):
        return PaperSurroundings(members, activations, architecture)
    return ModuleSurroundings(members, activations, architecture)


class PaperSurroundings(Surroundings):
    """Members of the paper's network, whose stem, source block and head are written out here."""

    def __init__(self, members: Mapping[str, Tensor], activations: Tensor, architecture: PaperArchitecture) -> None:
        self.target = structure(architecture)["target"]
        self.activations = activations
        self.patches = unfold(activations, 1)
        self.skipped = activations[:, :, ::READ_STRIDE, ::READ_STRIDE].flatten(2)
        self.head_kernel, self.head_bias = fold(members, "head.conv", "head.bn")
        self.linear, self.linear_bias = members["head.linear.weight"], members["head.linear.bias"]
        self.wanted_response = self._response(fold_batch_norm(members))
        self.wanted = torch.relu(self.skipped + self.wanted_response)
        self.wanted_features = self.features(self.wanted)
        self.wanted_logits = self.logits(self.wanted_features)

    def outputs(self, block: State) -> Tensor:
        if type(self.target) is SimpleBlock:
            return torch.relu(self.skipped + self._response(block))
        return stacked.forward(self.target, block, self.inputs).movedim(1, -1).flatten(2)

    def features(self, outputs: Tensor) -> Tensor:
        return torch.baddbmm(self.head_bias[..., None], self.head_kernel.flatten(2), outputs)

    def logits(self, features: Tensor) -> Tensor:
        rectified = torch.relu(features).reshape(len(features), -1, self.activations.shape[-1])
        return torch.baddbmm(self.linear_bias[..., None], self.linear, rectified).transpose(1, 2)

    def last_inputs(self, block: State) -> Tensor:
        if type(self.target) is SimpleBlock:
            return unfold(self.hidden(block), READ_STRIDE)
        features = stacked.forward(_LastInputs(self.target), stacked.join(block=block), self.inputs)  # [B, N, F, L]
        return features.movedim(1, -1).flatten(2)

    def _response(self, block: Mapping[str, Tensor]) -> Tensor:
        """Return what a block of two 3×3 convolutions, with or without biases, adds to its input: [B, C, L·N]."""
        return self.response(unfold(self.hidden(block), READ_STRIDE), block)

    def response(self, features: Tensor, block: Mapping[str, Tensor]) -> Tensor:
        """Return what such a block's last layer makes of `features` [B, H·9, L·N]: [B, C, L·N]."""
        kernels = block["conv2.weight"].flatten(2)
        if "conv2.bias" in block:
            return torch.baddbmm(block["conv2.bias"][..., None], kernels, features)
        return kernels @ features

    def hidden(self, block: Mapping[str, Tensor]) -> Tensor:
        """The rectified hidden units of such a block, [B, H, height, width, N]."""
        kernels = block["conv1.weight"].flatten(2)
        if "conv1.bias" in block:
            hidden = torch.baddbmm(block["conv1.bias"][..., None], kernels, self.patches)
        else:
            hidden = kernels @ self.patches
        return torch.relu(hidden).reshape(*hidden.shape[:2], *self.activations.shape[2:])


class ModuleSurroundings(Surroundings):
    """Members of any network, run as modules; units are known where the pair's layouts tell of them."""

    def __init__(self, members: Mapping[str, Tensor], activations: Tensor, architecture: Architecture) -> None:
        self.activations, self.members = activations, members
        parts = structure(architecture)
        self.source, self.target, self.head = parts["source"], parts["target"], parts["head"]
        self.of_head = stacked.part(members, "head")
        self.layouts, self.described = layouts(architecture), architecture.layouts()
        ours = {name: value for name, value in members.items() if not name.startswith(("stem.", "head."))}
        self.copied = self.described[1].copied_of(ours)
        block = {name: members[name] for name in self.source.state_dict() if name in members}
        output = stacked.forward(self.source, block, self.inputs)
        self.shape = tuple(output.shape[2:])
        self.wanted = output.movedim(1, -1).flatten(2)
        self.wanted_features = self.wanted
        self.wanted_logits = self.logits(self.wanted)

    @cached_property
    def skipped(self) -> Tensor:  # type: ignore[override]
        """The block's input, or what its shortcut makes of it, [B, C, L·N]."""
        path = self.described[0].shortcut
        if path is None:
            return self.activations.flatten(2)
        shortcut = self.source.get_submodule(path)
        return stacked.forward(shortcut, stacked.part(self.members, path), self.inputs).movedim(1, -1).flatten(2)

    @cached_property
    def wanted_response(self) -> Tensor:  # type: ignore[override]
        layout = self.layouts[0]
        weight, bias = layout.outgoing[0].folded(self.members)
        return torch.baddbmm(bias[..., None], weight.flatten(2), self._last_inputs(self.members, layout))

    @cached_property
    def patches(self) -> Tensor:  # type: ignore[override]
        return read_by(self.inputs, self.layouts[0].incoming[0])[0]

    def outputs(self, block: State) -> Tensor:
        """Outputs of a stack of target blocks, [B, C, L·N]; what is copied from the source need not be in `block`."""
        return stacked.forward(self.target, self.copied | block, self.inputs).movedim(1, -1).flatten(2)

    def features(self, outputs: Tensor) -> Tensor:
        return outputs

    def logits(self, features: Tensor) -> Tensor:
        count = self.activations.shape[-1]
        outputs = features.reshape(*features.shape[:2], *self.shape[1:], count).movedim(-1, 1)
        return stacked.forward(self.head, self.of_head, outputs)

    def last_inputs(self, block: State) -> Tensor:
        return self._last_inputs(block, self.layouts[1])

    def _last_inputs(self, block: Mapping[str, Tensor], layout: Layout) -> Tensor:
        into, out = layout.incoming[0], layout.outgoing[0]
        patches, size = read_by(self.inputs, into)
        weight, bias = into.folded(block)
        hidden = torch.relu(torch.baddbmm(bias[..., None], weight.flatten(2), patches))
        count = self.activations.shape[-1]
        return read_by(hidden.reshape(*hidden.shape[:2], *size, count).movedim(-1, 1), out)[0]


def fold_batch_norm(source: Mapping[str, Tensor]) -> State:
    """The paper's source block without BN: convolutions with biases that compute the same in evaluation mode."""
    folded: State = {}
    for number in (1, 2):
        weight, bias = fold(source, f"conv{number}", f"bn{number}")
        folded |= {f"conv{number}.weight": weight, f"conv{number}.bias": bias}
    return folded


class _LastInputs(nn.Module):
    """A target block up to its last layer."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.block.last_inputs(x)  # type: ignore[operator]
        return features
