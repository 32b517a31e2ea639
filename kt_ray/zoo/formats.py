"""Zoos in the layout of the paper's code: a `.pth` file for each part of each pair, numbered.

| folder | holds | members |
|---|---|---|
| `inputs`, `labels`, `backup_begin`, `backup_last` | source block, target block, stem, head | train |
| `complex`, `begin`, `last` | source block, stem, head | selection, then test (they have no target there) |

What is read is matched with our parameters in order and by shape, whatever its names. What is written has our names.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor, nn

from kt_ray._io.text import first_line
from kt_ray.config import PairName, ZooConfig
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
from kt_ray.networks import Architecture, State, stacked
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore
from kt_ray.zoo.training.objectives import accuracy

PAIRS = {"source": "inputs", "target": "labels", "stem": "backup_begin", "head": "backup_last"}
VALIDATION = {"source": "complex", "stem": "begin", "head": "last"}
SHARD_MEMBERS = 1024


def export_zoo(zoo: Zoo, folder: Path) -> dict[str, int]:
    """Write `zoo` in the paper's layout; returns how many files each sub-folder got.

    Snapshots and brief members are left out: the layout has no place for a training source without a target.
    """
    counts: dict[str, int] = {}
    whole, modules = zoo.where(), _modules(zoo.architecture)
    for split, layout in (("train", PAIRS), ("selection", VALIDATION), ("test", VALIDATION)):
        part = whole.where(split)  # type: ignore[arg-type]
        for name, sub_folder in layout.items():
            directory = folder / sub_folder
            directory.mkdir(parents=True, exist_ok=True)
            stack, start = part.part(name), counts.get(sub_folder, 0)
            for row in range(len(part)):
                modules[name].load_state_dict({key: value[row] for key, value in stack.items()}, strict=False)
                torch.save(modules[name].state_dict(), directory / f"{start + row}.pth")
            counts[sub_folder] = start + len(part)
    return counts


def import_zoo(folder: Path, store: ZooStore, config: ZooConfig, pair: PairName, dataset: Dataset) -> int:
    """Add the zoo that lies in the paper's layout under `folder` to `store`, created with `config`; returns members.

    Pairs become training members `imported-train-<i>`; validation networks become test members without a target.
    Seeds and epochs are not known: -1 and 0. Accuracies are measured on the selection images of `dataset`. Raises
    ZooError where a file is missing, is no state dict, holds more than tensors, or has other shapes.
    """
    architecture = Architecture(pair, config.network, dataset.image_shape, dataset.classes)
    store.create(config, pair, dataset)
    expected = {
        name: {key: value.shape for key, value in module.state_dict().items() if "num_batches" not in key}
        for name, module in _modules(architecture).items()
    }
    found = 0
    for split, layout in (("train", PAIRS), ("test", VALIDATION)):
        numbers = _numbers(folder, layout)
        found += len(numbers)
        for start in range(0, len(numbers), SHARD_MEMBERS):
            chunk = numbers[start : start + SHARD_MEMBERS]
            states = []
            for number in chunk:
                row: State = {}
                for name, shapes in expected.items():
                    if name in layout:
                        state = _read(folder / layout[name] / f"{number}.pth", shapes)
                    else:
                        state = {key: torch.full(shape, torch.nan) for key, shape in shapes.items()}
                    row |= stacked.join(**{name: state})
                states.append(row)
            stack = stacked.stack(states)
            store.add(stack, _index(stack, chunk, split, architecture, dataset))
    if not found:
        raise ZooError(f"no inputs/<i>.pth or complex/<i>.pth under {folder}; expected the layout of the paper's code")
    return found


def _modules(architecture: Architecture) -> dict[str, nn.Module]:
    return {
        "stem": architecture.stem(), "source": architecture.source_block(),
        "target": architecture.target_block(), "head": architecture.head(),
    }  # fmt: skip


def _numbers(folder: Path, layout: dict[str, str]) -> list[int]:
    """The numbers that every sub-folder has. Raises ZooError where one has fewer than another."""
    each = {
        sub_folder: {int(path.stem) for path in (folder / sub_folder).glob("*.pth") if path.stem.isdigit()}
        for sub_folder in layout.values()
    }
    union: set[int] = set().union(*each.values())
    for sub_folder, numbers in each.items():
        if numbers != union:
            lacking = min(union - numbers)
            path = folder / sub_folder / f"{lacking}.pth"
            raise ZooError(f"{path} is missing, but another folder has number {lacking}")
    return sorted(union)


def _read(path: Path, shapes: dict[str, torch.Size]) -> State:
    """A state dict with our names. Raises ZooError where it is not one of these shapes."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise ZooError(f"{path} is not a state dict that can be read safely ({reason})") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ZooError(f"{path} holds a {type(content).__name__}, expected a state dict of tensors")
    tensors = [value.float() for key, value in content.items() if "num_batches_tracked" not in str(key)]
    theirs, ours = [tuple(value.shape) for value in tensors], [tuple(shape) for shape in shapes.values()]
    if theirs != ours:
        raise ZooError(f"{path} has tensors of shapes {theirs}, expected {ours}; is it of another network or pair?")
    return dict(zip(shapes, tensors, strict=True))


def _index(stack: State, numbers: list[int], split: str, architecture: Architecture, dataset: Dataset) -> pa.Table:
    count, has_target = len(numbers), split == "train"
    shared = stacked.surroundings(stack)

    def accuracies(block: str, network: nn.Module) -> list[float]:
        state = shared | stacked.join(block=stacked.part(stack, block))
        measured: list[float] = accuracy(network, state, dataset.selection).tolist()
        return measured

    source = accuracies("source", architecture.source_network())
    target = accuracies("target", architecture.target_network()) if has_target else [math.nan] * count
    return pa.table(
        {
            "id": [f"imported-{split}-{number:06d}" for number in numbers],
            "seed": pa.array([-1] * count, pa.int64()),
            "split": [split] * count,
            "epoch": pa.array([0] * count, pa.int32()),
            "has_target": [has_target] * count,
            "source_accuracy": source,
            "target_accuracy": target,
            "seconds": [0.0] * count,
        }
    )
