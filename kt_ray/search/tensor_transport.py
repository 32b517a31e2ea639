"""Tensors through Ray's object store without a copy a worker.

Ray maps numpy arrays of the object store into every process of a node; PyTorch's own pickling would copy. So a
dataclass travels with arrays in place of its CPU tensors.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class _Packed:
    """A dataclass instance taken apart: its class and its packed fields."""

    kind: type[Any]
    fields: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Array:
    """A tensor as the array of its values."""

    values: np.ndarray[Any, Any]


def pack(value: Any) -> Any:
    """`value` with every CPU tensor in it (in dataclasses and dicts) turned into an array."""
    if isinstance(value, torch.Tensor):
        return _Array(value.detach().contiguous().numpy())
    if isinstance(value, dict):
        return {name: pack(entry) for name, entry in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and _holds_tensors(value):
        fields = {field.name: pack(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return _Packed(type(value), fields)
    return value


def unpack(value: Any) -> Any:
    """The inverse of `pack`. The tensors share the arrays' memory: nothing may write to them."""
    if isinstance(value, _Array):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(value.values)
    if isinstance(value, dict):
        return {name: unpack(entry) for name, entry in value.items()}
    if isinstance(value, _Packed):
        return value.kind(**{name: unpack(entry) for name, entry in value.fields.items()})
    return value


def _holds_tensors(value: Any) -> bool:
    entries = [getattr(value, field.name) for field in dataclasses.fields(value)]
    return any(
        isinstance(entry, torch.Tensor)
        or (isinstance(entry, dict) and any(isinstance(item, torch.Tensor) for item in entry.values()))
        or (dataclasses.is_dataclass(entry) and not isinstance(entry, type) and _holds_tensors(entry))
        for entry in entries
    )
