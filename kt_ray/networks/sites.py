"""Any registered network, cut at one of its sites or seen at several of them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kt_ray.config import NetworkChoice, PairChoice
from kt_ray.config.code import CodeFile, hashes
from kt_ray.config.study_code import code_of
from kt_ray.errors import ConfigError
from kt_ray.networks import stacked
from kt_ray.networks.architecture import Architecture
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
from kt_ray.networks.layouts import BlockLayout
from kt_ray.networks.stacked import State
from kt_ray.registry import cached, register

STEM, HEAD = "stem.", "head."


@dataclass(frozen=True)
class NetworkSites:
    """A registered network and pair, for images of one shape."""

    choice: PairChoice
    network: NetworkChoice
    image_shape: ImageShape
    classes: int

    @property
    def pair(self) -> str:
        return self.choice.name

    @property
    def code(self) -> tuple[CodeFile, ...]:
        """The files of code that registered the network or the pair, which another process has to run first."""
        return code_of(("network", self.network.name), ("pair", self.pair))

    def describe(self) -> dict[str, Any]:
        """Return pair, network, image shape, classes, and of code that a study brought along, the SHA-256 by file."""
        pair, network = self.choice.model_dump(mode="json"), self.network.model_dump(mode="json")
        content = {"pair": pair, "network": network, "image_shape": self.image_shape, "classes": self.classes}
        return content | ({"code": hashes(self.code)} if self.code else {})

    def at(self, site: str, replaced: tuple[str, ...] = ()) -> SiteArchitecture:
        """Return the network cut at `site`, those at `replaced` being target blocks already."""
        choice = self.choice.model_copy(update={"site": site})
        return SiteArchitecture(choice, self.network, self.image_shape, self.classes, replaced)

    def chosen_sites(self, sites: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return those of the network's sites that are named, in forward order; as the pair's options choose if None.

        Raises ConfigError if one is none of the network's.
        """
        network = _registered(self)[0]
        if sites is None:
            return chosen_sites(network, register.pair.get(self.pair).parse(self.choice.options))
        known = tuple(network.sites())
        unknown = [site for site in sites if site not in known]
        if unknown:
            raise ConfigError(f"{unknown[0]} is no site of network {self.network}; it has {', '.join(known)}")
        return tuple(site for site in known if site in sites)

    def smaller(self, sites: Sequence[str]) -> nn.Module:
        """Return a fresh network with target blocks at `sites`."""
        with torch.device("cpu"):
            return _Replaced(*_registered(self), tuple(sites)).build()

    def whole(self) -> nn.Module:
        """Return a fresh network as it was registered, with its own names and inputs."""
        with torch.device("cpu"):
            return built(_registered(self)[0])

    def taking_images(self, network: nn.Module) -> nn.Module:
        """Return a copy of `network` that takes images in [0, 1]."""
        return Cut.whole(network, Normalised(_registered(self)[0]))


@dataclass(frozen=True)
class SiteArchitecture(NetworkSites, Architecture):  # type: ignore[override]  # a pair's name is not written to
    """A registered network, cut at `choice.site`, with a registered pair.

    At the sites `replaced` the network has target blocks already, as while blocks are translated one after another.
    Its stem and head are the network itself up to the block and from it on; their tensors have the network's names
    behind `stem.` and `head.`.
    """

    replaced: tuple[str, ...] = ()
    read_stride = 1

    @property
    def site(self) -> str:
        """The block's module path."""
        assert self.choice.site is not None
        return self.choice.site

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.site,)

    def source_block(self, stride: int = 1) -> nn.Module:
        return self.whole().get_submodule(self.site)

    def target_block(self, stride: int = 1) -> nn.Module:
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
        network = self.whole()
        state, stem, head = network.state_dict(), self.stem(), self.head()
        for name, value in [*stem.state_dict().items(), *head.state_dict().items()]:
            value.copy_(state[name])  # their modules that never run hold nothing, which load_state_dict refuses
        return nn.Sequential(OrderedDict(stem=stem, block=network.get_submodule(self.site), head=head))

    @property
    def activation_shape(self) -> tuple[int, ...]:
        return _parts(self).site.input_shape

    def layouts(self) -> tuple[BlockLayout, BlockLayout]:
        site = _parts(self).site
        return site.layout, site.target_layout

    def parts(self) -> dict[str, nn.Module]:
        stem, source, head = self.source_network()
        return {"stem": stem, "source": source, "target": self.target_block(), "head": head}

    def split(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state_dict of the network under the names `stem.…`, `block.…`, `head.…`."""
        parts = _parts(self).cut
        stem, head = (parts.part_of(state, part) for part in (parts.before, parts.after))
        return stacked.join(stem=stem, block=parts.block_state(state), head=head)


@dataclass(frozen=True)
class SitesArchitecture(NetworkSites):
    """A registered network with a registered pair at several sites: those that the pair's options choose.

    A zoo keeps each network once, `network.…`, and beside it the target block of each site, `target.SITE.…`.
    """

    @property
    def sites(self) -> tuple[str, ...]:
        """The module paths of the blocks, in forward order."""
        return _sites(self)

    def views(self) -> tuple[Architecture, ...]:
        """Return the architecture at each site, in forward order."""
        return tuple(self.at(site) for site in self.sites)

    def source_network(self) -> nn.Module:
        """Return a fresh network that takes images in [0, 1]."""
        return self.taking_images(self.whole())

    def parts(self) -> dict[str, nn.Module]:
        """Return fresh modules by the names that a zoo has for them."""
        targets = {f"target.{site}": self.at(site).target_block() for site in self.sites}
        return {"network": self.whole()} | targets

    def seen(self, network: State) -> list[tuple[Architecture, State]]:
        """Return each view with a state, or stack, of `source_network` as `stem.…`, `block.…`, `head.…`."""
        return [(self.at(site), self.at(site).split(network)) for site in self.sites]

    def stored(self, network: State, targets: Sequence[State]) -> State:
        """Return one member as a zoo has it, from a state of `source_network` and the target of each view."""
        by_site = {f"target.{site}": target for site, target in zip(self.sites, targets, strict=True)}
        return stacked.join(network=network, **by_site)


@cached(32)
def _sites(architecture: SitesArchitecture) -> tuple[str, ...]:
    return architecture.chosen_sites()


@dataclass(frozen=True, eq=False)
class _Parts:
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
        module = built(self._network)
        for site in self._sites:
            replace_module(module, site, self._pair.target(module.get_submodule(site)))
        return module

    def sites(self) -> tuple[str, ...]:
        """Return the sites of the network."""
        return tuple(self._network.sites())


@cached(128)
def _registered(sites: NetworkSites) -> tuple[Network, Pair]:
    """Return what the registry makes of the names. Raises ConfigError as `make_network` and `make_pair` do."""
    network, pair = sites.network, sites.choice
    with torch.random.fork_rng(devices=[]):
        made = make_pair(pair.name, pair.options)
        return make_network(network.name, network.options, sites.image_shape, sites.classes), made


@cached(128)
def _parts(architecture: SiteArchitecture) -> _Parts:
    """Return what the registry makes of an architecture, checked. Raises ConfigError as `find_sites` does."""
    network, pair = _registered(architecture)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
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
    return _Parts(pair, site, parts)
