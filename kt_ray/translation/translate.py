"""Translate a user's checkpoint: read the large network, write the small one, say what it costs and gives."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kt_ray._io.display import Displayed
from kt_ray.config import NetworkConfig
from kt_ray.data import Dataset
from kt_ray.errors import CheckpointError
from kt_ray.networks import PaperArchitecture, State, stacked
from kt_ray.networks.checkpoint import find_network, network_state, write_state
from kt_ray.networks.cost import multiply_adds, parameter_count
from kt_ray.translation.checkpoint import load_translator
from kt_ray.translation.translator import Translator
from kt_ray.zoo.training.objectives import accuracy


@dataclass(frozen=True, repr=False)
class Translation(Displayed):
    """What a translation wrote. Accuracies are on the test images of the dataset that was named, if one was."""

    output: str
    checkpoint: str  # what was found in the file
    translator: str
    pair: str
    seconds: float
    parameters_before: int
    parameters_after: int
    multiply_adds_before: int
    multiply_adds_after: int
    dataset: str | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def display_title(self) -> str:
        """Return pair and time."""
        return f"{self.pair}, translated in {1000 * self.seconds:.0f} ms"

    def display_rows(self) -> list[dict[str, Any]]:
        """Return `rows()`."""
        return self.rows()

    def rows(self) -> list[dict[str, Any]]:
        """For a table: before and after, a row a quantity."""
        rows: list[dict[str, Any]] = [
            {"": "parameters", "before": self.parameters_before, "after": self.parameters_after},
            {"": "multiply-adds", "before": self.multiply_adds_before, "after": self.multiply_adds_after},
        ]
        if self.dataset is not None:
            name = f"accuracy on {self.dataset} test images"
            rows.append({"": name, "before": self.accuracy_before, "after": self.accuracy_after})
        return rows


def translate(
    translator_file: Path,
    checkpoint: Path,
    output: Path,
    dataset: Dataset | None = None,
    state_dict: str | None = None,
    device: str = "cpu",
) -> Translation:
    """Write the network in `checkpoint` with its block translated to `output`, as safetensors.

    Names and dtypes are those of the checkpoint: `stem.…`, `block.…`, `head.…`, or the paper's, with the prefix that
    they have there. `state_dict` chooses one of several networks in the file. A network of other widths than the
    translator's is translated if its family serves them, to a block of as large a share of the source's hidden units.
    The translator and the networks whose accuracy is measured run on `device`.
    Raises CheckpointError if either file cannot be read safely, does not fit, is not finite, gives a block that is
    not, or if `output` is not safetensors, is one of the two or cannot be written, or `dataset` has images of
    another shape.
    """
    _check_output(output, translator_file, checkpoint)
    loaded = load_translator(translator_file)
    trained = loaded.architecture
    if not isinstance(trained, PaperArchitecture):
        raise CheckpointError(f"{translator_file} is for {trained.network}, not for the paper's network")
    if dataset is not None and dataset.image_shape != trained.image_shape:
        raise CheckpointError(
            f"{dataset.name} has images {dataset.image_shape}, the network takes {trained.image_shape}; "
            "name another --dataset"
        )
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
    for name, value in stacked.part(after, "block").items():
        if not value.isfinite().all():
            raise CheckpointError(
                f"the block translated from {checkpoint} holds NaN or infinity in {name}: nothing is written; check "
                "that the network works"
            )
    write_state(output, found.renamed(after), {"pair": architecture.pair, "made_by": "kt_ray"})
    after = {name: value.float() for name, value in after.items()}
    source, target = architecture.source_network(), architecture.target_network()
    return Translation(
        output=str(output),
        checkpoint=str(found),
        translator=str(translator_file),
        pair=architecture.pair,
        seconds=seconds,
        parameters_before=parameter_count(source),
        parameters_after=parameter_count(target),
        multiply_adds_before=multiply_adds(source, architecture.image_shape),
        multiply_adds_after=multiply_adds(target, architecture.image_shape),
        dataset=dataset.name if dataset else None,
        accuracy_before=_accuracy(source, before, dataset, device) if dataset else None,
        accuracy_after=_accuracy(target, after, dataset, device) if dataset else None,
    )


def _check_output(output: Path, *inputs: Path) -> None:
    if output.suffix != ".safetensors":
        raise CheckpointError(f"output {output} must end in .safetensors")
    if output.resolve() in [path.resolve() for path in inputs]:
        raise CheckpointError(f"output {output} is a file that is read and would be lost; name another --output")


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
    stack = {name.removeprefix("block."): value.unsqueeze(0).to(device) for name, value in network.items()}
    return {name: value[0].cpu() for name, value in translator(stack).items()}


@torch.no_grad()
def _accuracy(network: nn.Module, state: State, dataset: Dataset, device: str) -> float:
    """The share of the test images that `network` with the values of `state` gets right."""
    stack = {name: value.unsqueeze(0).to(device) for name, value in state.items()}
    return float(accuracy(network, stack, dataset.test.to(device)))
