"""All blocks of networks translated in forward order, each where the blocks before it are the smaller ones already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kt_ray.data import LabelledImages
from kt_ray.networks import NetworkSites, SiteArchitecture, State, stacked
from kt_ray.translation.translator import Translator


@torch.no_grad()
def walk(
    translator: Translator, architecture: NetworkSites, networks: State, sites: Sequence[str]
) -> Iterator[tuple[SiteArchitecture, State, State]]:
    """Translate the blocks at `sites`, given in forward order, of a stack of networks under their own names.

    Yields after each site the architecture there, the stack of its target blocks, and the stack of networks with them.
    """
    done: tuple[str, ...] = ()
    for site in sites:
        here = architecture.at(site, replaced=done)
        cut = here.split(networks)
        read = {name.removeprefix("block."): value for name, value in cut.items()}
        blocks: State = translator.for_architecture(here).eval()(read)
        around = {name: value for name, value in networks.items() if not name.startswith(f"{site}.")}
        networks = around | {f"{site}.{name}": value for name, value in blocks.items()}
        done = (*done, site)
        yield here, blocks, networks


@torch.no_grad()
def predictions(
    architecture: NetworkSites, networks: State, images: LabelledImages, sites: Sequence[str], batch: int
) -> Tensor:
    """Return the classes [R, N] that a stack of networks with target blocks at `sites` predicts, `batch` images at
    once."""
    with torch.random.fork_rng(devices=[]):
        module = architecture.taking_images(architecture.smaller(sites))
    device = stacked.device(networks)
    parts = [
        stacked.forward(module, networks, part.to(device), shared=True).argmax(-1) for part, _ in images.batches(batch)
    ]
    return torch.cat(parts, dim=1)
