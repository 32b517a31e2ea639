"""Where the blocks of a zoo sit: what runs before a block, source and target block, and what runs after it.

The paper's network has an `Architecture` written out by hand; any other network has one that is cut at a site.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, get_args

import torch
from torch import Tensor, nn

from kt_ray.config import NetworkChoice, NetworkConfig, PairChoice, PairName
from kt_ray.config.code import CodeFile, hashes
from kt_ray.errors import ConfigError
from kt_ray.networks import stacked
from kt_ray.networks.contracts import (
    ImageShape,
    Network,
    Normalised,
    Pair,
    Site,
    built,
    chosen_sites,
    cut,
    find_sites,
    make_network,
    make_pair,
    replace_module,
)
from kt_ray.networks.cut import Cut
from kt_ray.networks.layouts import BlockLayout, flat_layout
from kt_ray.networks.pairs import PAIRS, READ_STRIDE, BlockPair, Head, Stem
from kt_ray.registry import on_change, register
from kt_ray.study_code import code_of, require_code

STEM, HEAD = "stem.", "head."


class Architecture(ABC):
    """A block pair in the networks that it sits in, for images of one shape. Compared and hashed by what it describes.

    A network is split into stem → block → head. `read_stride` says which positions of a block's output the head reads:
    with that stride, `source_block` and `target_block` compute these alone, and `head(stride=1)` takes them so.
    """

    pair: str
    network: NetworkConfig | NetworkChoice
    image_shape: ImageShape
    classes: int
    read_stride: int

    @abstractmethod
    def source_block(self, stride: int = 1) -> nn.Module:
        """Return a fresh source block, its output at every `stride`-th row and column."""

    @abstractmethod
    def target_block(self, stride: int = 1) -> nn.Module:
        """Return a fresh target block, its output at every `stride`-th row and column."""

    @abstractmethod
    def stem(self) -> nn.Module:
        """Return a fresh stem: images [N, C, H, W] in [0, 1] to what the block reads."""

    @abstractmethod
    def head(self, stride: int | None = None) -> nn.Module:
        """Return a fresh head: the whole output of a block, or with `stride` 1 what it reads of it, to logits."""

    @abstractmethod
    def source_network(self) -> nn.Sequential:
        """Return a fresh stem → source block → head; parameters are named `stem.…`, `block.…`, `head.…`."""

    def parts(self) -> dict[str, nn.Module]:
        """Return fresh modules by the names that a zoo has for them: stem, source, target, head."""
        return {
            "stem": self.stem(),
            "source": self.source_block(),
            "target": self.target_block(),
            "head": self.head(),
        }

    def target_network(self) -> nn.Sequential:
        """Return a fresh stem → target block → head; parameters are named `stem.…`, `block.…`, `head.…`."""
        return nn.Sequential(OrderedDict(stem=self.stem(), block=self.target_block(), head=self.head()))

    @property
    @abstractmethod
    def activation_shape(self) -> tuple[int, ...]:
        """The shape of what the block reads, without the batch."""

    @abstractmethod
    def layouts(self) -> tuple[BlockLayout, BlockLayout]:
        """Return where source and target block keep their parameters."""

    @property
    def code(self) -> tuple[CodeFile, ...]:
        """The files of code that registered the network or the pair, which another process has to run first."""
        return ()

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what `described` makes this architecture of again, as plain data."""


@dataclass(frozen=True)
class PaperArchitecture(Architecture):
    """The paper's network with one of its block pairs, from widths, image shape (C, H, W) and classes."""

    pair: PairName
    network: NetworkConfig = NetworkConfig()
    image_shape: ImageShape = (1, 28, 28)
    classes: int = 10
    read_stride = READ_STRIDE

    @property
    def _blocks(self) -> BlockPair:
        return PAIRS[self.pair]

    def source_block(self, stride: int = 1) -> nn.Module:
        """Return a fresh source block."""
        return self._blocks.source(self.network, stride)

    def target_block(self, stride: int = 1) -> nn.Module:
        """Return a fresh target block."""
        return self._blocks.target(self.network, stride)

    def stem(self) -> Stem:
        """Return a fresh stem."""
        return Stem(self.image_shape[0], self.network.channels)

    def head(self, stride: int | None = None) -> Head:
        """Return a fresh head."""
        _, height, width = self.image_shape
        positions = -(-height // 4) * -(-width // 4)  # two strides of 2, each rounding up
        stride = READ_STRIDE if stride is None else stride
        return Head(self.network.channels, self.network.head_channels, positions, self.classes, stride)

    def source_network(self) -> nn.Sequential:
        """Return a fresh source network."""
        return nn.Sequential(OrderedDict(stem=self.stem(), block=self.source_block(), head=self.head()))

    @property
    def activation_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the block's input and output."""
        _, height, width = self.image_shape
        return self.network.channels, -(-height // 2), -(-width // 2)

    def layouts(self) -> tuple[BlockLayout, BlockLayout]:
        """Return the layouts that the registered pair gives."""
        return _paper_layouts(self)

    def describe(self) -> dict[str, Any]:
        """Return pair, widths, image shape and classes."""
        network = self.network.model_dump(mode="json")
        return {"pair": self.pair, "network": network, "image_shape": self.image_shape, "classes": self.classes}


@lru_cache(maxsize=64)
def _paper_layouts(architecture: PaperArchitecture) -> tuple[BlockLayout, BlockLayout]:
    pair = make_pair(architecture.pair)
    with torch.device("meta"):
        source, target = architecture.source_block(), architecture.target_block()
    return pair.layout(source) or flat_layout(source), pair.target_layout(target) or flat_layout(target)


@dataclass(frozen=True)
class SiteArchitecture(Architecture):
    """A registered network, cut at `choice.site`, with a registered pair.

    At the sites `replaced` the network has target blocks already, as while blocks are translated one after another.
    Its stem and head are the network itself up to the block and from it on; their tensors have the network's names
    behind `stem.` and `head.`.
    """

    choice: PairChoice
    network: NetworkChoice
    image_shape: ImageShape
    classes: int
    replaced: tuple[str, ...] = ()
    read_stride = 1

    @property
    def pair(self) -> str:  # type: ignore[override]
        """The pair's name."""
        return self.choice.name

    @property
    def site(self) -> str:
        """The block's module path."""
        assert self.choice.site is not None
        return self.choice.site

    def source_block(self, stride: int = 1) -> nn.Module:
        """Return a fresh source block."""
        return self.whole().get_submodule(self.site)

    def target_block(self, stride: int = 1) -> nn.Module:
        """Return a fresh target block."""
        parts = _parts(self)
        with torch.device("cpu"):
            return parts.pair.target(copy.deepcopy(parts.cut.block))

    def stem(self) -> nn.Module:
        """Return what runs before the block; its values mean nothing."""
        return copy.deepcopy(_parts(self).cut.before)

    def head(self, stride: int | None = None) -> nn.Module:
        """Return what runs after the block; it reads the whole output, and its values mean nothing."""
        return copy.deepcopy(_parts(self).cut.after)

    def source_network(self) -> nn.Sequential:
        """Return a fresh network, cut."""
        network = self.whole()
        state, stem, head = network.state_dict(), self.stem(), self.head()
        for name, value in [*stem.state_dict().items(), *head.state_dict().items()]:
            value.copy_(state[name])  # their modules that never run hold nothing, which load_state_dict does not bear
        return nn.Sequential(OrderedDict(stem=stem, block=network.get_submodule(self.site), head=head))

    @property
    def activation_shape(self) -> tuple[int, ...]:
        """The shape of the block's input."""
        return _parts(self).site.input_shape

    def layouts(self) -> tuple[BlockLayout, BlockLayout]:
        """Return the pair's layouts, flat where it has none."""
        site = _parts(self).site
        return site.layout, site.target_layout

    def describe(self) -> dict[str, Any]:
        """Return pair, network, image shape, classes, and of code that a study brought along, the SHA-256 by file."""
        pair, network = self.choice.model_dump(mode="json"), self.network.model_dump(mode="json")
        content = {"pair": pair, "network": network, "image_shape": self.image_shape, "classes": self.classes}
        return content | ({"code": hashes(self.code)} if self.code else {})

    @property
    def code(self) -> tuple[CodeFile, ...]:
        """The files of code that registered the network or the pair."""
        return code_of(("network", self.network.name), ("pair", self.pair))

    def at(self, site: str, replaced: tuple[str, ...] = ()) -> SiteArchitecture:
        """Return the same network and pair at another site, those at `replaced` being target blocks already."""
        return replace(self, choice=self.choice.model_copy(update={"site": site}), replaced=replaced)

    def chosen_sites(self, sites: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return those of the network's sites that are named, in forward order; as the pair's options choose if None.

        Raises ConfigError if one is none of the network's.
        """
        parts = _parts(self)
        if sites is None:
            return chosen_sites(parts.network, register.pair.get(self.pair).parse(self.choice.options))
        known = tuple(parts.network.sites())
        unknown = [site for site in sites if site not in known]
        if unknown:
            raise ConfigError(f"{unknown[0]} is no site of network {self.network}; it has {', '.join(known)}")
        return tuple(site for site in known if site in sites)

    def smaller(self, sites: Sequence[str]) -> nn.Module:
        """Return a fresh network with target blocks at `sites`."""
        parts = _parts(self)
        with torch.device("cpu"):
            return _Replaced(parts.network, parts.pair, tuple(sites)).build()

    def taking_images(self, network: nn.Module) -> nn.Module:
        """Return a copy of `network` that takes images in [0, 1]."""
        return Cut.whole(network, Normalised(_parts(self).network))

    def parts(self) -> dict[str, nn.Module]:
        """Return fresh modules by the names that a zoo has for them: stem, source, target, head."""
        stem, source, head = self.source_network()
        return {"stem": stem, "source": source, "target": self.target_block(), "head": head}

    def whole(self) -> nn.Module:
        """Return a fresh network as it was registered, with its own names and inputs."""
        with torch.device("cpu"):
            return built(_parts(self).network)

    def split(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state_dict of the network under the names `stem.…`, `block.…`, `head.…`."""
        parts = _parts(self).cut
        stem, head = (parts.part_of(state, part) for part in (parts.before, parts.after))
        return stacked.join(stem=stem, block=parts.block_state(state), head=head)


@dataclass(frozen=True, eq=False)
class _Parts:
    network: Network
    pair: Pair
    site: Site
    cut: Cut


class _Replaced:
    """A network with target blocks at some sites."""

    def __init__(self, network: Network, pair: Pair, sites: tuple[str, ...]) -> None:
        self.image_shape, self.classes = network.image_shape, network.classes
        self.mean, self.deviation = getattr(network, "mean", ()), getattr(network, "deviation", ())
        self._network, self._pair, self._sites = network, pair, sites

    def build(self) -> nn.Module:
        """Return a fresh one."""
        module = built(self._network)
        for site in self._sites:
            replace_module(module, site, self._pair.target(module.get_submodule(site)))
        return module

    def sites(self) -> tuple[str, ...]:
        """Return the sites of the network."""
        return tuple(self._network.sites())


@lru_cache(maxsize=16)
def _parts(architecture: SiteArchitecture) -> _Parts:
    """Return what the registry makes of an architecture, checked. Raises ConfigError as `find_sites` does."""
    choice, pair = architecture.network, make_pair(architecture.choice.name, architecture.choice.options)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make_network(choice.name, choice.options, architecture.image_shape, architecture.classes)
        if architecture.replaced:
            network = _Replaced(network, pair, architecture.replaced)
        (site,) = find_sites(network, pair, (architecture.site,))
        parts = cut(network, architecture.site)
    both = sorted(parts.before.state_dict().keys() & parts.after.state_dict().keys())
    if both:
        raise ConfigError(
            f"site {architecture.site}: {both[0]} is used before and after the block; name a larger block around both"
        )
    own = [name for name in site.source.state_dict() if name.startswith((STEM, HEAD))]
    if own:
        raise ConfigError(f"site {architecture.site}: the block's {own[0]} would be taken for another part; rename it")
    return _Parts(network, pair, site, parts)


on_change(_parts.cache_clear)


@lru_cache(maxsize=32)
def structure(architecture: Architecture) -> dict[str, nn.Module]:
    """Return stem, source, target and head for `stacked.forward`, made once: their own values mean nothing.

    Blocks give what the head reads, and the head takes it so.
    """
    stride = architecture.read_stride
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return {
            "stem": architecture.stem(),
            "source": architecture.source_block(stride),
            "target": architecture.target_block(stride),
            "head": architecture.head(stride=1),
        }


on_change(structure.cache_clear)


def architecture_of(
    pair: str | PairChoice, network: NetworkConfig | NetworkChoice, image_shape: ImageShape, classes: int
) -> Architecture:
    """Return the architecture of a block pair in a network, for images of one shape.

    Raises ConfigError if a name is unknown, options are wrong, the site is none of the network or none is named where
    there are several, or source and target do not fit.
    """
    choice = PairChoice(name=pair) if isinstance(pair, str) else pair
    if isinstance(network, NetworkConfig) and choice.name in get_args(PairName) and not choice.options:
        if choice.site not in (None, "block"):
            raise ConfigError(f"pair.site: {choice.site} is no site of the network; it has block")
        return PaperArchitecture(choice.name, network, image_shape, classes)  # type: ignore[arg-type]
    if isinstance(network, NetworkConfig):
        network = NetworkChoice(name="paper", options=network.model_dump())
    if choice.site is None:
        sites = tuple(make_network(network.name, network.options, image_shape, classes).sites())
        if len(sites) != 1:
            raise ConfigError(
                f"the network {network} has {len(sites)} sites; name one in pair.site: {', '.join(sites)}"
            )
        choice = choice.model_copy(update={"site": sites[0]})
    architecture = SiteArchitecture(choice, network, image_shape, classes)
    _parts(architecture)
    return architecture


def described(content: Mapping[str, Any]) -> Architecture:
    """Return the architecture of what `Architecture.describe` gave, or of a `zoo.json`.

    Raises ConfigError as `architecture_of` does, or if code that it names is missing, pydantic's ValidationError for
    other content.
    """
    require_code(content.get("code", {}))
    network = content["network"]
    network = NetworkConfig.model_validate(network) if isinstance(network, dict) and "name" not in network else (
        NetworkChoice.model_validate(network)
    )  # fmt: skip
    channels, height, width = (int(size) for size in content["image_shape"])
    pair = PairChoice.model_validate(content["pair"])
    return architecture_of(pair, network, (channels, height, width), int(content["classes"]))
