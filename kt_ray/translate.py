"""Translate a user's checkpoint: read the large network, write the small one, say what it costs and gives."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kt_ray.data import Dataset
from kt_ray.errors import CheckpointError
from kt_ray.networks import Architecture, State, stacked
from kt_ray.networks.checkpoint import read_network, write_state
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

    Names are `stem.…`, `block.…`, `head.…`, as in the checkpoint.
    Raises CheckpointError where either file cannot be read safely, does not fit, or `output` is not safetensors.
    """
    if output.suffix != ".safetensors":
        raise CheckpointError(f"output {output} must end in .safetensors")
    loaded = load_translator(translator_file)
    architecture = loaded.architecture
    before = read_network(checkpoint, architecture.source_network())
    start = time.perf_counter()
    with torch.no_grad():
        # A translator may also read the stem and head around the block, and run the network on images of its own.
        network = {name.removeprefix("block."): value.unsqueeze(0) for name, value in before.items()}
        small = {name: value[0] for name, value in loaded.translator.eval()(network).items()}
    seconds = time.perf_counter() - start
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


def _accuracy(architecture: Architecture, kind: str, state: State, dataset: Dataset) -> float:
    network = architecture.source_network() if kind == "source" else architecture.target_network()
    if dataset.image_shape != architecture.image_shape:
        raise CheckpointError(
            f"{dataset.name} has images {dataset.image_shape}, the network takes {architecture.image_shape}; "
            "name another --dataset"
        )
    stack = {name: value.unsqueeze(0) for name, value in state.items()}
    right = 0
    with torch.no_grad():
        for images, labels in dataset.test.batches(EVALUATION_BATCH):
            logits = stacked.forward(network, stack, images, shared=True)[0]
            right += int((logits.argmax(1) == labels).sum())
    return right / len(dataset.test)
