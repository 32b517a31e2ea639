"""What a network and a block pair must offer, whoever wrote them, and where a network's blocks are replaced."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from kt_ray._io.text import first_line
from kt_ray.errors import ConfigError
from kt_ray.networks.cut import Cut
from kt_ray.networks.layouts import BlockLayout, flat_layout
from kt_ray.registry import register

ImageShape = tuple[int, int, int]  # channels, height, width


class Network(Protocol):
    """A kind of network: images [N, C, H, W] in [0, 1], less `mean` and over `deviation`, to logits [N, classes]."""

    image_shape: ImageShape
    classes: int
    mean: tuple[float, ...]  # of each channel; () for none
    deviation: tuple[float, ...]

    def build(self) -> nn.Module:
        """Return a fresh network, initialised from torch's global generator."""

    def sites(self) -> tuple[str, ...]:
        """Return the module paths of the blocks that can be replaced, in forward order."""


class Pair(Protocol):
    """Which block is translated into which."""

    def target(self, source: nn.Module) -> nn.Module:
        """Return a fresh target block for the block `source` of a network, whose inputs and outputs it has."""

    def layout(self, source: nn.Module) -> BlockLayout | None:
        """Return where a source block keeps its parameters; None if nothing is known."""

    def target_layout(self, target: nn.Module) -> BlockLayout | None:
        """Return where a target block keeps its parameters; None if nothing is known."""


@dataclass(frozen=True)
class Site:
    """A block of a network that a pair replaces: structure only, on the meta device."""

    path: str
    source: nn.Module
    target: nn.Module
    layout: BlockLayout
    target_layout: BlockLayout
    input_shape: tuple[int, ...]


def make_network(
    name: str,
    options: Mapping[str, Any] | BaseModel | None = None,
    image_shape: ImageShape | None = None,
    classes: int | None = None,
) -> Network:
    """Return the registered network `name`.

    Options called `image_shape` and `classes` that are not set get these values, as a dataset has them.
    Raises ConfigError if there is none, its options are wrong, or the network is for other images or classes.
    """
    entry = register.network.get(name)
    given = options.model_dump(exclude_unset=True) if isinstance(options, BaseModel) else dict(options or {})
    for key, value in (("image_shape", image_shape), ("classes", classes)):
        if key in entry.options.model_fields and value is not None:
            given.setdefault(key, value)
    network: Network = register.network.make(name, given)
    for key, value in (("image_shape", image_shape), ("classes", classes)):
        own = getattr(network, key, None)
        own = tuple(own) if isinstance(own, list) else own
        if own is None:
            raise ConfigError(f"network {name} has no attribute {key}; set it, as the contract of networks says")
        if value is not None and own != value:
            raise ConfigError(f"network {name} has {key} {own}, the dataset has {value}; choose another dataset")
    return network


def make_pair(name: str, options: Mapping[str, Any] | BaseModel | None = None) -> Pair:
    """Return the registered block pair `name`. Raises ConfigError if there is none or its options are wrong."""
    pair: Pair = register.pair.make(name, options)
    return pair


def built(network: Network) -> nn.Module:
    """Return a fresh module of `network`. Raises ConfigError if it cannot be built or is no module."""
    try:
        module = network.build()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"the network's build() raises {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"the network's build() returns a {type(module).__name__}, expected an nn.Module")
    return module


class Normalised:
    """Images in [0, 1] as a network takes them."""

    def __init__(self, network: Network) -> None:
        self.mean, self.deviation = tuple(getattr(network, "mean", ())), tuple(getattr(network, "deviation", ()))
        channels = network.image_shape[0]
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            if len(values) not in (0, channels):
                raise ConfigError(f"the network's {name} has {len(values)} values, its images have {channels} channels")

    def __call__(self, images: Tensor) -> Tensor:
        """Return `images` [..., C, H, W] less the mean and over the deviation of each channel."""
        if self.mean:
            images = images - images.new_tensor(self.mean)[:, None, None]
        return images / images.new_tensor(self.deviation)[:, None, None] if self.deviation else images


def cut(network: Network, site: str, module: nn.Module | None = None) -> Cut:
    """Return `network` cut at `site`: a fresh one, or a copy of `module`. Images are in [0, 1].

    Raises ConfigError if the site is no module, or the network cannot be cut there.
    """
    module = built(network) if module is None else module
    return Cut(module, site, network.image_shape, Normalised(network))


def chosen_sites(network: Network, options: BaseModel | None = None) -> tuple[str, ...]:
    """Return the sites of `network` that a pair's options choose: all, or those that `options.sites` names."""
    sites = tuple(network.sites())
    wanted = getattr(options, "sites", "all")
    if wanted == "all":
        return sites
    unknown = [path for path in wanted if path not in sites]
    if unknown:
        raise ConfigError(f"pair.options.sites: {unknown[0]} is no site of the network; it has {', '.join(sites)}")
    return tuple(path for path in sites if path in wanted)


def find_sites(network: Network, pair: Pair, paths: tuple[str, ...] | None = None) -> tuple[Site, ...]:
    """Return the blocks of `network` at `paths` (all its sites if None) and what `pair` makes of them.

    Raises ConfigError for a site that is no module, a target whose output has another shape than the source's, a layout
    that leaves a tensor out, a network of other outputs than its classes, or code that raises.
    """
    with torch.random.fork_rng(devices=[]):
        module = built(network).eval()
    found = []
    for path in network.sites() if paths is None else paths:
        parts = cut(network, path, module)
        found.append(_site(parts, pair, path))
        logits = parts.shapes["logits"]
        if logits != (network.classes,):
            raise ConfigError(f"the network gives logits of shape {logits}, its classes are {network.classes}")
    return tuple(found)


def _site(parts: Cut, pair: Pair, path: str) -> Site:
    try:
        source = parts.block
        with torch.random.fork_rng(devices=[]):
            target = pair.target(copy.deepcopy(source))
        if not isinstance(target, nn.Module):
            raise ConfigError(f"pair.target returns a {type(target).__name__}, expected an nn.Module")
        inputs = torch.zeros(2, *parts.shapes["inputs"])
        with torch.no_grad():
            output = target.eval()(inputs)
        layouts = pair.layout(source) or flat_layout(source), pair.target_layout(target) or flat_layout(target)
    except ConfigError as error:
        raise ConfigError([f"site {path}: {problem}" for problem in error.problems]) from None
    except Exception as error:
        raise ConfigError(f"site {path}: the pair raises {type(error).__name__}: {first_line(error)}") from error
    expected = parts.shapes["outputs"]
    if tuple(output.shape[1:]) != expected:
        raise ConfigError(
            f"site {path}: the target's output has shape {tuple(output.shape[1:])}, the source's {expected}"
        )
    for name, block, layout in (("the source", source, layouts[0]), ("the target", target, layouts[1])):
        layout.check(block, f"{name} at {path}")
    meta = [copy.deepcopy(block).to("meta") for block in (source, target)]
    return Site(path, meta[0], meta[1], *layouts, parts.shapes["inputs"])


def replace_module(network: nn.Module, path: str, block: nn.Module) -> None:
    """Put `block` at the module path `path` of `network`."""
    parent, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(parent), leaf, block)


def layout_widths(layout: BlockLayout, block: nn.Module) -> tuple[int, ...]:
    """Return the numbers of hidden units of `block`; for a flat layout the number of its values."""
    state = block.state_dict()
    if layout.is_flat:
        return (sum(math.prod(state[name].shape) for name in layout.flat),)
    return tuple(units.size(state) for units in layout.hidden)
