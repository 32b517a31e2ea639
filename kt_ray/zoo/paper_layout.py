"""Zoos in the layout of the paper's code: a `.pth` file for each part of each pair, numbered.

| folder | holds | members |
|---|---|---|
| `inputs`, `labels`, `backup_begin`, `backup_last` | source block, target block, stem, head | train |
| `complex`, `begin`, `last` | source block, stem, head | selection, then test (they have no target there) |

What is written has the names of the paper's code, and loads into its modules; what is read has its names or ours.
"""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import torch
from torch import nn

from kt_ray.config import PairChoice, ZooConfig
from kt_ray.data import Dataset
from kt_ray.errors import CheckpointError, ZooError
from kt_ray.networks import Architecture, PaperArchitecture, State, architecture_of, stacked
from kt_ray.networks.checkpoint import read_state
from kt_ray.networks.paper_names import layer_name
from kt_ray.zoo.members import AnyZoo, SitesZoo
from kt_ray.zoo.store import ZooStore
from kt_ray.zoo.training.objectives import accuracy

PAIRS = {"source": "inputs", "target": "labels", "stem": "backup_begin", "head": "backup_last"}
VALIDATION = {"source": "complex", "stem": "begin", "head": "last"}
SHARD_MEMBERS = 1024
_PART = {"stem": "stem", "source": "block", "target": "block", "head": "head"}  # as in whole networks


def export_zoo(zoo: AnyZoo, folder: Path) -> dict[str, int]:
    """Write `zoo` in the paper's layout, under its names; return how many files each sub-folder got.

    Snapshots and brief members are left out: the layout has no place for a training source without a target.
    Raises ZooError if its networks are not the paper's.
    """
    if isinstance(zoo, SitesZoo) or not isinstance(zoo.architecture, PaperArchitecture):
        raise ZooError(
            f"the paper's layout is of the paper's network, this zoo is of {zoo.architecture.network}; read its "
            "shards, which are safetensors"
        )
    counts: dict[str, int] = {}
    whole, modules = zoo.where(), zoo.architecture.parts()
    for split, layout in (("train", PAIRS), ("selection", VALIDATION), ("test", VALIDATION)):
        part = whole.where(split)  # type: ignore[arg-type]
        for name, sub_folder in layout.items():
            directory = folder / sub_folder
            directory.mkdir(parents=True, exist_ok=True)
            stack, start = part.part(name), counts.get(sub_folder, 0)
            for row in range(len(part)):
                modules[name].load_state_dict({key: value[row] for key, value in stack.items()}, strict=False)
                state = {layer_name(_PART[name], key): value for key, value in modules[name].state_dict().items()}
                torch.save(state, directory / f"{start + row}.pth")
            counts[sub_folder] = start + len(part)
    return counts


def import_zoo(folder: Path, store: ZooStore, config: ZooConfig, pair: str | PairChoice, dataset: Dataset) -> int:
    """Add the zoo that is stored in the paper's layout under `folder` to `store`, created with `config`.

    Returns how many members it had.

    Pairs become training members `imported-train-<i>`; validation networks become test members without a target.
    Seeds and epochs are not known: -1 and 0. Accuracies are measured on the selection images of `dataset`. Raises
    ZooError if a file is missing, is no state dict, or has other names or shapes.
    """
    architecture = architecture_of(pair, config.network, dataset.image_shape, dataset.classes)
    if not isinstance(architecture, PaperArchitecture):
        raise ZooError(f"the paper's layout holds networks of the paper, got pair {pair} of network {config.network}")
    store.create(config, pair, dataset)
    expected = {
        name: {key: value.shape for key, value in module.state_dict().items() if "num_batches" not in key}
        for name, module in architecture.parts().items()
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
                        state = _read(folder / layout[name] / f"{number}.pth", _PART[name], shapes)
                    else:
                        state = {key: torch.full(shape, torch.nan) for key, shape in shapes.items()}
                    row |= stacked.join(**{name: state})
                states.append(row)
            stack = stacked.stack(states)
            store.add(stack, _index(stack, chunk, split, architecture, dataset))
    if not found:
        raise ZooError(f"no inputs/<i>.pth or complex/<i>.pth under {folder}; expected the layout of the paper's code")
    return found


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


def _read(path: Path, part: str, shapes: dict[str, torch.Size]) -> State:
    """Return the file of one part under our names, float32. Raises ZooError if it is not one of these shapes."""
    try:
        state = read_state(path)
    except CheckpointError as error:
        raise ZooError(str(error)) from None
    for names in ({name: name for name in shapes}, {name: layer_name(part, name) for name in shapes}):
        if set(names.values()) == state.keys():
            found = {name: state[theirs].float() for name, theirs in names.items()}
            other = [name for name, value in found.items() if value.shape != shapes[name]]
            if not other:
                return found
            sizes, expected = tuple(found[other[0]].shape), tuple(shapes[other[0]])
            raise ZooError(f"{path} has {names[other[0]]} of shape {sizes}, expected {expected}; check zoo.network")
    expected_names = ", ".join(layer_name(part, name) for name in shapes)
    raise ZooError(
        f"{path} has the tensors {', '.join(state)[:300]}, expected {expected_names}; is it of another network or pair?"
    )


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
