"""Translate a user's checkpoint: read the large network, write the small one, say what it costs and gives."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kt_ray.config import NetworkConfig
from kt_ray.data import Dataset
from kt_ray.errors import CheckpointError
from kt_ray.networks import PaperArchitecture, State, stacked
from kt_ray.networks.checkpoint import find_network, network_state
from kt_ray.networks.state_file import write_state
from kt_ray.translation.checkpoint import load_translator
from kt_ray.translation.report import TranslationReport, check_finite, check_output, measured
from kt_ray.translation.translate_sites import SitesTranslation, translate_sites
from kt_ray.translation.translator import Translator


@dataclass(frozen=True, repr=False, kw_only=True)
class Translation(TranslationReport):
    """The result of translating one block."""

    translator: str
    pair: str

    def display_title(self) -> str:
        return f"{self.pair}, translated in {1000 * self.seconds:.0f} ms"


def translate(
    translator_file: Path,
    checkpoint: Path,
    output: Path,
    dataset: Dataset | None = None,
    state_dict: str | None = None,
    device: str = "cpu",
    sites: Sequence[str] | None = None,
) -> Translation | SitesTranslation:
    """Write the network in `checkpoint` with its block translated to `output`, as safetensors.

    Names and dtypes are those of the checkpoint: `stem.…`, `block.…`, `head.…`, or the paper's, with the prefix that
    they have there. `state_dict` chooses one of several networks in the file. A network of other widths than the
    translator's is translated if its family serves them, to a block of as large a share of the source's hidden units.
    A translator of a registered network writes the blocks at all of its `sites`: see `translate_sites`.
    The translator and the networks whose accuracy is measured run on `device`.
    Raises CheckpointError if either file cannot be read safely, does not fit, is not finite, gives a block that is
    not, or if `output` is not safetensors, is one of the two or cannot be written, or `dataset` has images of
    another shape.
    """
    check_output(output, translator_file, checkpoint)
    loaded = load_translator(translator_file)
    trained = loaded.architecture
    if dataset is not None and dataset.image_shape != trained.image_shape:
        raise CheckpointError(
            f"{dataset.name} has images {dataset.image_shape}, the network takes {trained.image_shape}; "
            "name another --dataset"
        )
    if not isinstance(trained, PaperArchitecture):
        return translate_sites(
            loaded, translator_file, checkpoint, output, sites, dataset=dataset, state_dict=state_dict, device=device
        )
    if sites not in (None, ["block"]):
        raise CheckpointError("the paper's network has one site, block; leave --site out")
    with torch.device("meta"):
        names = trained.source_network().state_dict().keys()
    found = find_network(checkpoint, names, state_dict)
    architecture = replace(trained, network=_widths(found.state, trained.network))
    with torch.device("meta"):  # a file may claim any widths
        expected = architecture.source_network()
    before = network_state(found, expected)
    translator = loaded.translator.for_architecture(architecture).to(device).eval()
    start = time.perf_counter()
    block = _translated(translator, before)
    seconds = time.perf_counter() - start
    after = found.in_dtype(stacked.surroundings(found.state) | stacked.join(block=block))
    check_finite("block", checkpoint, stacked.part(after, "block"))
    write_state(output, found.renamed(after), {"pair": architecture.pair, "made_by": "kt_ray"})
    source, target = architecture.source_network(), architecture.target_network()
    source.load_state_dict(before, strict=False)
    target.load_state_dict(after, strict=False)
    return Translation(
        output=str(output),
        checkpoint=str(found),
        translator=str(translator_file),
        pair=architecture.pair,
        seconds=seconds,
        **measured(source, target, architecture.image_shape, dataset, device),
    )


def _widths(state: State, trained: NetworkConfig) -> NetworkConfig:
    """The widths of the source network in `state`, where it has any; `trained` shares out the target's hidden units."""
    kernels = [state[name] for name in ("block.conv1.weight", "head.conv.weight") if name in state]
    if len(kernels) < 2 or any(kernel.dim() != 4 or not kernel.numel() for kernel in kernels):
        return trained  # `network_state` tells what is wrong
    (hidden, channels), head_channels = kernels[0].shape[:2], len(kernels[1])
    target_hidden = max(1, round(hidden * trained.target_hidden / trained.source_hidden))
    return NetworkConfig(
        channels=channels, source_hidden=hidden, target_hidden=target_hidden, head_channels=head_channels
    )


@torch.no_grad()
def _translated(translator: Translator, network: State) -> State:
    """The target block for one network, names `stem.…`, `block.…`, `head.…`."""
    device = next(translator.parameters()).device
    stack = {name.removeprefix("block."): value for name, value in stacked.stack([network]).items()}
    return stacked.to(stacked.take(translator(stacked.to(stack, device)), 0), "cpu")
