"""Layouts of blocks: the tensors into and out of hidden units, and those that are folded or copied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kt_ray.errors import ConfigError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a block, and the batch norm after it.

    `weight` and `bias` are names in the block's state_dict, `norm` is the path of the batch norm, of `eps`. `kernel` is
    () for a linear layer, which acts on channels at each position.
    """

    weight: str
    bias: str | None = None
    norm: str | None = None
    kernel: tuple[int, ...] = (3, 3)
    stride: int = 1
    padding: int = 1
    eps: float = 1e-5

    @classmethod
    def of(cls, block: nn.Module, path: str, norm: str | None = None) -> Layer:
        """Return the layer at `path` of `block`, with the batch norm at `norm`.

        Raises ConfigError if there is no such module, or it is none that a layout describes: grouped or dilated
        convolutions, unequal strides or paddings.
        """
        module = _module(block, path)
        eps = 1e-5
        if norm is not None:
            of_norm = _module(block, norm)
            if not isinstance(of_norm, NORMS) or not of_norm.track_running_stats or not of_norm.affine:
                raise ConfigError(f"{norm} is {of_norm}, expected a BatchNorm2d with running statistics and scale")
            eps = of_norm.eps
        bias = f"{path}.bias" if getattr(module, "bias", None) is not None else None
        if isinstance(module, nn.Linear):
            return cls(f"{path}.weight", bias, norm, (), 1, 0, eps)
        if not isinstance(module, nn.Conv2d):
            raise ConfigError(f"{path} is a {type(module).__name__}, expected a Conv2d or Linear")
        stride, padding = set(module.stride), module.padding if isinstance(module.padding, str) else set(module.padding)
        plain = module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
        if not plain or len(stride) > 1 or isinstance(padding, str) or len(padding) > 1:
            raise ConfigError(
                f"{path} is {module}, expected one group, no dilation, and equal strides and paddings of zeros; "
                "return None as its layout, which the family mlp serves"
            )
        kernel = tuple(int(size) for size in module.kernel_size)
        return cls(f"{path}.weight", bias, norm, kernel, int(module.stride[0]), int(padding.pop()), eps)

    @property
    def path(self) -> str:
        """The layer's module path in the block."""
        return self.weight.rpartition(".")[0]

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors of the layer and its batch norm."""
        norm = (
            [f"{self.norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")] if self.norm else []
        )
        return (self.weight, *([self.bias] if self.bias else []), *norm)

    def folded(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return kernels [..., out, in, …] and biases [..., out] with the batch norm folded in (evaluation mode).

        `state` is one block's, or a stack [B, …].
        """
        weight = state[self.weight]
        outputs = weight.shape[: weight.dim() - 1 - (len(self.kernel) or 0)]
        bias = state[self.bias] if self.bias else weight.new_zeros(outputs)
        if self.norm is None:
            return weight, bias
        scale = state[f"{self.norm}.weight"] / torch.sqrt(state[f"{self.norm}.running_var"] + self.eps)
        bias = (bias - state[f"{self.norm}.running_mean"]) * scale + state[f"{self.norm}.bias"]
        return weight * scale.reshape(*scale.shape, *[1] * (weight.dim() - scale.dim())), bias


@dataclass(frozen=True)
class HiddenLayer:
    """Hidden units of a block, rectified: the layers that write them and the layers that read them.

    Several layers may lead in, as query, key and value of attention do.
    """

    incoming: tuple[Layer, ...]
    outgoing: tuple[Layer, ...]

    def size(self, state: Mapping[str, Tensor]) -> int:
        """Return how many units one block's `state` has here."""
        return len(state[self.incoming[0].weight])


@dataclass(frozen=True)
class BlockLayout:
    """The layers of a block.

    `hidden` are its layers of hidden units in forward order: one for a basic block, two for a bottleneck, whose middle
    convolution leads out of the first and into the second. `copied` are paths of modules or names of tensors that the
    target has as the source has them, such as a projection shortcut. If `residual`, the last layer's output is added to
    the block's input, or to the output of the module `shortcut` on it, and a ReLU follows if `rectified`.
    Without `hidden`, the layout is flat: `flat` names all tensors, in order, and no symmetry is known.
    """

    hidden: tuple[HiddenLayer, ...] = ()
    copied: tuple[str, ...] = ()
    shortcut: str | None = None
    residual: bool = True
    rectified: bool = True
    flat: tuple[str, ...] = field(default=())

    @property
    def is_flat(self) -> bool:
        """True if nothing but its tensors is known of the block."""
        return not self.hidden

    def layers(self) -> tuple[Layer, ...]:
        """Return every layer once, in forward order."""
        found = (layer for units in self.hidden for layer in units.incoming + units.outgoing)
        return tuple(dict.fromkeys(found))

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors of layers and norms, or of the flat layout; not those that are copied."""
        return self.flat if self.is_flat else tuple(name for layer in self.layers() for name in layer.names())

    def is_copied(self, name: str) -> bool:
        """Return whether the tensor `name` is copied from source to target."""
        return any(name == copied or name.startswith(f"{copied}.") for copied in self.copied)

    def copied_of(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those tensors of a block, or of a stack, that are copied from source to target."""
        return {name: value for name, value in state.items() if self.is_copied(name)}

    def check(self, block: nn.Module, what: str = "the block") -> None:
        """Raise ConfigError if the layout leaves out a tensor of `block`, or names one that it does not have."""
        state = {name for name in block.state_dict() if not name.endswith("num_batches_tracked")}
        missing = sorted(set(self.names()) - state)
        if missing:
            raise ConfigError(f"the layout of {what} names {missing[0]}, which it does not have; it has {_few(state)}")
        left = [name for name in sorted(state - set(self.names())) if not self.is_copied(name)]
        if left:
            raise ConfigError(
                f"the layout of {what} leaves out {_few(left)}; name every tensor as a layer's, or as copied"
            )


def flat_layout(block: nn.Module) -> BlockLayout:
    """Return the layout of a block of which nothing is known: all its tensors, in order."""
    return BlockLayout(
        flat=tuple(name for name in block.state_dict() if not name.endswith("num_batches_tracked")), residual=False
    )


def _module(block: nn.Module, path: str) -> nn.Module:
    try:
        return block.get_submodule(path)
    except AttributeError:
        known = [name for name, _ in block.named_modules() if name]
        raise ConfigError(f"a {type(block).__name__} has no module {path!r}; it has {_few(known)}") from None


def _few(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "none"
