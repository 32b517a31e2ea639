"""Translate blocks of a checkpoint of any registered network, site by site in forward order, with one translator."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kt_ray._io.files import write_whole
from kt_ray.data import Dataset
from kt_ray.networks import NetworkSites, SiteArchitecture, stacked
from kt_ray.networks.checkpoint import load_network
from kt_ray.networks.cost import multiply_adds, parameter_count
from kt_ray.networks.state_file import write_state
from kt_ray.translation.checkpoint import LoadedTranslator
from kt_ray.translation.report import TranslationReport, builder_beside, check_finite, check_output, measured
from kt_ray.translation.site_walk import walk

BUILDER = '''"""Builds the smaller network that {file} holds. Written by `kt-ray translate`.

    from safetensors.torch import load_file

    network = build()
    network.load_state_dict(load_file({file!r}))

Import the code that registers network and pair first, if they are not bundled with kt_ray.
"""

from torch import nn

from kt_ray.networks import described

ARCHITECTURE = {architecture}
SITES = {sites}


def build() -> nn.Module:
    """Return a fresh network with target blocks at the sites."""
    return described(ARCHITECTURE).smaller(SITES)
'''


@dataclass(frozen=True)
class SiteTranslation:
    """The block at one site: cost before and after, and the time that writing it took."""

    path: str
    parameters_before: int
    parameters_after: int
    multiply_adds_before: int
    multiply_adds_after: int
    seconds: float


@dataclass(frozen=True, repr=False, kw_only=True)
class SitesTranslation(TranslationReport):
    """The result of translating the blocks at all sites."""

    translator: str
    pair: str
    sites: list[SiteTranslation]

    def display_title(self) -> str:
        return f"{self.pair}, {len(self.sites)} blocks, translated in {self.seconds:.2f} s"

    def site_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "block": site.path,
                "parameters": f"{site.parameters_before:,} → {site.parameters_after:,}",
                "multiply-adds": f"{site.multiply_adds_before:,} → {site.multiply_adds_after:,}",
                "ms": round(1000 * site.seconds, 1),
            }
            for site in self.sites
        ]


@torch.no_grad()
def translate_sites(
    loaded: LoadedTranslator,
    translator: Path,
    checkpoint: Path,
    output: Path,
    sites: Sequence[str] | None = None,
    *,
    dataset: Dataset | None = None,
    state_dict: str | None = None,
    device: str = "cpu",
) -> SitesTranslation:
    """Write the network in `checkpoint` with translated blocks at `sites`; at all that the pair chooses if None.

    `loaded`, of a registered network and pair, is from the file `translator`. Each block is written, and refined, in
    the network whose earlier blocks are already the smaller ones. The tensors go to `output` (safetensors) under the
    checkpoint's names and dtypes; a file of the same name ending in .py builds the network that loads them strictly.
    `state_dict` chooses one of several networks in the file; `dataset` measures accuracy on its test images before and
    after.
    Raises CheckpointError if a file cannot be read safely, does not fit or is not finite, a site's block has widths
    that the translator's family does not serve, or the output cannot be written; ConfigError if a site is none of the
    network's.
    """
    check_output(output, translator, checkpoint)
    builder = builder_beside(output)
    trained = loaded.architecture
    assert isinstance(trained, NetworkSites)
    network = trained.whole()
    found = load_network(network, checkpoint, state_dict)
    given = stacked.to(stacked.stack([network.state_dict()]), device)
    written, done = given, list[SiteTranslation]()
    began = started = time.perf_counter()
    for here, blocks, networks in walk(loaded.translator.to(device), trained, given, trained.chosen_sites(sites)):
        written = networks
        check_finite(f"block at {here.site}", checkpoint, stacked.take(blocks, 0))
        done.append(_site(here, time.perf_counter() - started))
        started = time.perf_counter()
    seconds = started - began
    paths = [site.path for site in done]
    small = trained.smaller(paths)
    small.load_state_dict(stacked.to(stacked.take(written, 0), "cpu"), strict=False)
    metadata = {"architecture": json.dumps(trained.describe()), "sites": json.dumps(paths), "made_by": "kt_ray"}
    write_state(output, found.renamed(found.in_dtype(small.state_dict())), metadata)
    architecture = {key: value for key, value in trained.describe().items() if key != "code"}  # who runs it imports it
    text = BUILDER.format(file=output.name, architecture=repr(architecture), sites=repr(paths))
    write_whole(builder, text.encode())
    both = trained.taking_images(network), trained.taking_images(small)
    return SitesTranslation(
        output=str(output),
        builder=str(builder),
        checkpoint=str(found),
        translator=str(translator),
        pair=trained.pair,
        sites=done,
        seconds=seconds,
        **measured(*both, trained.image_shape, dataset, device),
    )


def _site(here: SiteArchitecture, seconds: float) -> SiteTranslation:
    """What the block at the site of `here` cost before and after."""
    source, target = here.source_block(), here.target_block()
    before, after = (multiply_adds(block, here.activation_shape) for block in (source, target))
    return SiteTranslation(here.site, parameter_count(source), parameter_count(target), before, after, seconds)
