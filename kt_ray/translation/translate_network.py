"""Translate every residual block of a user's checkpoint, and write the smaller network with the file that builds it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kt_ray._io.files import write_whole
from kt_ray._io.text import first_line
from kt_ray.data import Dataset
from kt_ray.errors import CheckpointError
from kt_ray.networks import stacked
from kt_ray.networks.checkpoint import load_network
from kt_ray.networks.state_file import write_state
from kt_ray.translation.narrowing import builder_text, narrowed
from kt_ray.translation.report import (
    Preprocessing,
    TranslationReport,
    builder_beside,
    check_finite,
    check_output,
    measured,
)
from kt_ray.translation.whole_network import Fitting, SiteReport, translate_blocks


@dataclass(frozen=True, repr=False, kw_only=True)
class NetworkTranslation(TranslationReport):
    """The result of translating all blocks; `agreement` is the share of the probes on which both networks predict
    the same."""

    sites: list[SiteReport]
    agreement: float
    peak_mib: float

    def display_title(self) -> str:
        return f"{len(self.sites)} blocks, translated in {self.seconds:.1f} s"

    def display_rows(self) -> list[dict[str, Any]]:
        rows = super().display_rows()
        return [*rows[:2], {"": "agreement on probes", "before": 1.0, "after": self.agreement}, *rows[2:]]

    def site_rows(self) -> list[dict[str, Any]]:
        """Return a row for each block; "missed" is the share of its output's variance that is missed on the probes."""
        return [
            {
                "block": site.path,
                "hidden before": site.hidden_before,
                "hidden after": site.hidden_after,
                "missed": site.error,
                "seconds": site.seconds,
            }
            for site in self.sites
        ]


def translate_network(
    network: nn.Module,
    checkpoint: Path,
    output: Path,
    probes: Tensor,
    share: float = 0.5,
    *,
    preprocessing: Preprocessing | None = None,
    fitting: Fitting | None = None,
    dataset: Dataset | None = None,
    state_dict: str | None = None,
    device: str = "cpu",
    progress: Callable[[SiteReport], None] | None = None,
) -> NetworkTranslation:
    """Write the network in `checkpoint` with `share` (0, 1] of the hidden units of each residual block.

    `network` is a fresh one of its kind. Blocks are fitted on `probes`, images [N, C, H, W] in [0, 1], which
    `preprocessing` turns into what the network takes; `progress` is called after each. The tensors go to `output`
    (safetensors), under the network's own names and in the checkpoint's dtypes; a file of the same name ending in .py
    has the function that narrows a fresh network, which loads them strictly. `state_dict` chooses one of several
    networks in the file; `dataset` measures accuracy on its test images before and after.
    Raises CheckpointError if the file cannot be read safely, does not fit the network or is not finite, the network has
    no residual blocks, or the output is not safetensors, would replace the checkpoint, or cannot be written.
    """
    check_output(output, checkpoint)
    builder = builder_beside(output)
    if not 0 < share <= 1:
        raise CheckpointError(f"share of hidden units {share}, expected over 0 and up to 1")
    found = load_network(network, checkpoint, state_dict)
    network.eval().requires_grad_(False)
    prepare = preprocessing or (lambda images: images)
    check_images(network, prepare(probes[:2]))
    probes = probes.to(device)
    began = time.perf_counter()
    small, sites = narrowed(network, share)
    network, small = network.to(device), small.to(device)
    report = translate_blocks(network, small, sites, prepare(probes), fitting, progress)
    seconds = time.perf_counter() - began
    written = stacked.to(small.state_dict(), "cpu")
    check_finite("network", checkpoint, written)
    write_state(output, found.in_dtype(written), {"made_by": "kt_ray"})
    hidden = {site.path: site.hidden_after for site in report.sites}
    write_whole(builder, builder_text(type(network).__name__, output.name, hidden).encode())
    return NetworkTranslation(
        output=str(output),
        builder=str(builder),
        checkpoint=str(found),
        sites=report.sites,
        agreement=report.agreement,
        seconds=seconds,
        peak_mib=report.peak_mib,
        **measured(network, small, tuple(probes.shape[1:]), dataset, device, prepare),
    )


@torch.no_grad()
def check_images(network: nn.Module, images: Tensor) -> None:
    """Raise CheckpointError if `network` cannot take `images`."""
    try:
        network(images)
    except Exception as error:  # a person's network raises what it likes
        raise CheckpointError(
            f"{type(network).__name__} cannot take images {tuple(images.shape[1:])} ({first_line(error)}); give the "
            "shape that it was trained on"
        ) from error
