"""The plain training of a translator, as the paper's published code has it: a file a block, read one by one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import Dataset as TorchDataset

from kt_ray.networks import State
from kt_ray.zoo.members import Zoo

MASK, NOISE = 0.1, 0.01


class Pairs(TorchDataset[tuple[State, State]]):
    """A sample is a source and a target block, each a file of its own, as in the paper's published code."""

    def __init__(self, directory: Path, count: int) -> None:
        self.directory, self.count = directory, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[State, State]:
        source, target = (
            torch.load(self.directory / kind / f"{index}.pth", weights_only=True) for kind in ("inputs", "labels")
        )
        return corrupted(source), corrupted(target)


def corrupted(block: State) -> State:
    """Masked, and with noise."""
    changed = {}
    for name, value in block.items():
        changed[name] = value
        if value.ndim > 1:
            changed[name] = value * (torch.rand_like(value) >= MASK) + NOISE * torch.randn_like(value)
    return changed


def write_pairs(zoo: Zoo, directory: Path) -> None:
    """One file a block."""
    for kind, part in (("inputs", "source"), ("labels", "target")):
        (directory / kind).mkdir()
        stack = zoo.part(part)
        for row in range(len(zoo)):
            torch.save({name: value[row].clone() for name, value in stack.items()}, directory / kind / f"{row}.pth")
