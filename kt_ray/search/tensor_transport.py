"""CPU tensors through Ray's object store as numpy arrays: Ray maps these into every process of a node, uncopied."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ray.util import deregister_serializer, register_serializer


@contextmanager
def tensors_as_arrays() -> Iterator[None]:
    """Store the CPU tensors in whatever is put into the object store within a `with` as arrays.

    Read back, they are tensors of the arrays' memory: nothing may write to them.
    """
    register_serializer(torch.Tensor, serializer=_as_array, deserializer=_as_tensor)
    try:
        yield
    finally:
        deregister_serializer(torch.Tensor)


def _as_array(tensor: torch.Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


def _as_tensor(array: Any) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
