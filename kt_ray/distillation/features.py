"""Feature maps of a network's layers, taken by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from kt_ray.errors import ConfigError

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Outputs:
    """A network's outputs for a batch: `logits` [N, classes] and, by layer name, `features` [N, C, H, W]."""

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)


def run_with_features(network: nn.Module, images: Tensor, layers: Sequence[str] = ()) -> Outputs:
    """`network` on `images` [N, …] with the outputs of the submodules named `layers`.

    A submodule used more than once gives its last output. Raises ConfigError for a name that is no submodule.
    """
    features: dict[str, Tensor] = {}

    def take(name: str, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        features[name] = output

    handles = [find_layer(network, name).register_forward_hook(partial(take, name)) for name in layers]
    try:
        logits = network(images)
    finally:
        for handle in handles:
            handle.remove()
    return Outputs(logits, features)


def find_layer(network: nn.Module, name: str, role: str = "network") -> nn.Module:
    """The submodule `name`. Raises ConfigError naming what the network, called `role` there, has instead."""
    modules: dict[str, nn.Module] = dict(network.named_modules())
    modules.pop("")
    if name not in modules:
        like = difflib.get_close_matches(name, modules, n=4) if "." in name else []
        known = like or [layer for layer in modules if "." not in layer][:12]
        raise ConfigError(f"the {role} has no layer {name!r}; it has {', '.join(known)}")
    return modules[name]


def feature_shapes(
    network: nn.Module, layers: Sequence[str], image_shape: Shape, role: str = "network"
) -> dict[str, Shape]:
    """Channels, height and width of the maps of `layers` for one image of `image_shape`.

    Raises ConfigError, calling the network `role`, for an unknown layer or one whose output is not [N, C, H, W].
    """
    for name in layers:
        find_layer(network, name, role)
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    training = network.training
    with torch.no_grad():
        outputs = run_with_features(network.eval(), torch.zeros(1, *image_shape, device=device), layers)
    network.train(training)
    shapes: dict[str, Shape] = {}
    for name in layers:
        output = outputs.features.get(name)
        if not isinstance(output, Tensor) or output.dim() != 4:
            got = "nothing" if output is None else f"shape {tuple(getattr(output, 'shape', ()))}"
            raise ConfigError(
                f"layer {name!r} of the {role} gives {got}, expected feature maps [N, channels, height, "
                "width]; name a convolution or a group of layers"
            )
        shapes[name] = (output.shape[1], output.shape[2], output.shape[3])
    return shapes


def common_size(teacher: Shape, student: Shape) -> tuple[int, int]:
    """Height and width at which maps of both are compared: the smaller of the two, reached by average pooling."""
    return min(teacher[1], student[1]), min(teacher[2], student[2])


def pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """`maps` [N, C, H, W] averaged to `size`; as they are where they have it."""
    return maps if tuple(maps.shape[-2:]) == size else functional.adaptive_avg_pool2d(maps, size)
