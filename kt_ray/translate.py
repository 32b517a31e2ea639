"""Translate a user's checkpoint: read the large network, write the small one, say what it costs and gives."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kt_ray.config import NetworkConfig
from kt_ray.data import Dataset
from kt_ray.errors import CheckpointError
from kt_ray.networks import Architecture, State, stacked
from kt_ray.networks.checkpoint import read_network, read_state, write_state
from kt_ray.networks.cost import multiply_adds, parameter_count
from kt_ray.translators.checkpoint import load_translator

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Translation:
    """What a translation wrote. Accuracies are on the test images of the dataset that was named, if one was."""

    output: str
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


def translate(translator_file: Path, checkpoint: Path, output: Path, dataset: Dataset | None = None) -> Translation:
    """Write the network in `checkpoint` with its block translated to `output`, as safetensors.

    Names are `stem.…`, `block.…`, `head.…`, as in the checkpoint. A network of other widths than the translator's is
    translated where its family serves them, to a block of as large a share of the source's hidden units.
    Raises CheckpointError where either file cannot be read safely, does not fit, is not finite, gives a block that is
    not, or where `output` is not safetensors or `dataset` has images of another shape.
    """
    if output.suffix != ".safetensors":
        raise CheckpointError(f"output {output} must end in .safetensors")
    loaded = load_translator(translator_file)
    trained = loaded.architecture
    if dataset is not None and dataset.image_shape != trained.image_shape:
        raise CheckpointError(
            f"{dataset.name} has images {dataset.image_shape}, the network takes {trained.image_shape}; "
            "name another --dataset"
        )
    architecture = replace(trained, network=_widths(read_state(checkpoint), trained.network))
    with torch.device("meta"):  # a file may claim any widths
        expected = architecture.source_network()
    before = read_network(checkpoint, expected)
    translator = loaded.translator.for_architecture(architecture)
    start = time.perf_counter()
    with torch.no_grad():
        # A translator may also read the stem and head around the block, and run the network on images of its own.
        network = {name.removeprefix("block."): value.unsqueeze(0) for name, value in before.items()}
        small = {name: value[0] for name, value in translator.eval()(network).items()}
    seconds = time.perf_counter() - start
    for name, value in small.items():
        if not value.isfinite().all():
            raise CheckpointError(
                f"the block translated from {checkpoint} holds NaN or infinity in {name}: nothing is written; check "
                "that the network works"
            )
    kept = {name: value for name, value in before.items() if not name.startswith("block.")}
    after = kept | stacked.join(block=small)
    try:
        write_state(output, after, {"pair": architecture.pair, "made_by": "kt_ray"})
    except OSError as error:
        raise CheckpointError(f"{output} cannot be written: {error.strerror}") from None
    source, target = architecture.source_network(), architecture.target_network()
    return Translation(
        output=str(output),
        translator=str(translator_file),
        pair=architecture.pair,
        seconds=seconds,
        parameters_before=parameter_count(source),
        parameters_after=parameter_count(target),
        multiply_adds_before=multiply_adds(source, architecture.image_shape),
        multiply_adds_after=multiply_adds(target, architecture.image_shape),
        dataset=dataset.name if dataset else None,
        accuracy_before=_accuracy(architecture, "source", before, dataset) if dataset else None,
        accuracy_after=_accuracy(architecture, "target", after, dataset) if dataset else None,
    )


def _widths(state: State, trained: NetworkConfig) -> NetworkConfig:
    """The widths of the source network in `state`, where it has any; `trained` shares out the target's hidden units."""
    kernels = [state[name] for name in ("block.conv1.weight", "head.conv.weight") if name in state]
    if len(kernels) < 2 or any(kernel.dim() != 4 or not kernel.numel() for kernel in kernels):
        return trained  # `read_network` tells what is wrong
    (hidden, channels), head_channels = kernels[0].shape[:2], len(kernels[1])
    target_hidden = max(1, round(hidden * trained.target_hidden / trained.source_hidden))
    return NetworkConfig(
        channels=channels, source_hidden=hidden, target_hidden=target_hidden, head_channels=head_channels
    )


def _accuracy(architecture: Architecture, kind: str, state: State, dataset: Dataset) -> float:
    network = architecture.source_network() if kind == "source" else architecture.target_network()
    stack = {name: value.unsqueeze(0) for name, value in state.items()}
    right = 0
    with torch.no_grad():
        for images, labels in dataset.test.batches(EVALUATION_BATCH):
            logits = stacked.forward(network, stack, images, shared=True)[0]
            right += int((logits.argmax(1) == labels).sum())
    return right / len(dataset.test)
