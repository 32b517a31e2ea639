"""The report of a translated checkpoint: the network before and after, and the checks that both kinds share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kt_ray._io.display import Displayed
from kt_ray.data import Dataset
from kt_ray.errors import CheckpointError
from kt_ray.networks.cost import multiply_adds, parameter_count

Preprocessing = Callable[[Tensor], Tensor]
BATCH = 250  # test images at once


@dataclass(frozen=True, repr=False, kw_only=True)
class TranslationReport(Displayed):
    """A network before and after. Accuracies are on the test images of the dataset that was named, if one was."""

    output: str
    checkpoint: str  # what was found in the file
    seconds: float
    parameters_before: int
    parameters_after: int
    multiply_adds_before: int
    multiply_adds_after: int
    builder: str | None = None  # a Python file that builds the network which loads `output`
    dataset: str | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def site_rows(self) -> list[dict[str, Any]]:
        """Return a row for each block, if there are several."""
        return []

    def display_rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [
            {"": "parameters", "before": self.parameters_before, "after": self.parameters_after},
            {"": "multiply-adds", "before": self.multiply_adds_before, "after": self.multiply_adds_after},
        ]
        if self.dataset is not None:
            name = f"accuracy on {self.dataset} test images"
            rows.append({"": name, "before": self.accuracy_before, "after": self.accuracy_after})
        return rows


@torch.no_grad()
def measured(
    before: nn.Module,
    after: nn.Module,
    image_shape: tuple[int, ...],
    dataset: Dataset | None,
    device: str,
    prepare: Preprocessing | None = None,
) -> dict[str, Any]:
    """Return cost and, on the test images of `dataset`, accuracy of two networks on `device`: fields of a report."""
    fields: dict[str, Any] = {"dataset": dataset.name if dataset else None}
    for when, network in (("before", before.to(device).eval()), ("after", after.to(device).eval())):
        fields[f"parameters_{when}"] = parameter_count(network)
        fields[f"multiply_adds_{when}"] = multiply_adds(network, image_shape)
        if dataset is not None:
            batches = dataset.test.to(device).batches(BATCH)
            prepared = ((prepare(images) if prepare else images, labels) for images, labels in batches)
            right = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in prepared)
            fields[f"accuracy_{when}"] = right / len(dataset.test)
    return fields


WRITTEN, BEGINNING = b"Written by `kt-ray translate`", 1_000  # what each builder says of itself, in its first bytes


def check_output(output: Path, *inputs: Path) -> None:
    """Raise CheckpointError unless `output` is a safetensors file and would replace none of `inputs`."""
    if output.suffix != ".safetensors":
        raise CheckpointError(f"output {output} must end in .safetensors")
    if {output.resolve(), output.with_suffix(".py").resolve()} & {path.resolve() for path in inputs}:
        raise CheckpointError(f"output {output} is a file that is read and would be lost; name another --output")


def builder_beside(output: Path) -> Path:
    """Return the Python file that builds the network in `output`. Raises CheckpointError if it is someone else's."""
    builder = output.with_suffix(".py")
    if builder.exists() and not (builder.is_file() and WRITTEN in builder.read_bytes()[:BEGINNING]):
        raise CheckpointError(
            f"{builder}, which was not written by kt-ray, would be replaced by what builds the network; "
            "name another --output"
        )
    return builder


def check_finite(what: str, checkpoint: Path, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if a tensor of `state`, the `what` translated from `checkpoint`, is not finite."""
    for name, value in state.items():
        if not value.isfinite().all():
            raise CheckpointError(
                f"the {what} translated from {checkpoint} holds NaN or infinity in {name}: nothing is written; check "
                "that the network works"
            )
