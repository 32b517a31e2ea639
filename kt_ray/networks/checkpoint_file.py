"""The content of a checkpoint's file: read without running code, and checked before it takes more than it holds."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kt_ray.errors import CheckpointError
from kt_ray.networks.stacked import by_name

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
INFLATION = 4  # a file may hold so many times its size, and a little more, in tensors: they may share values


def content(path: Path) -> Any:
    """Return what the file holds. Raises CheckpointError if it is missing, damaged, or needs code to be read."""
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(9)
        torch_saved = head.startswith((b"PK", b"\x80"))
        if head[8:] == b"{" or (path.suffix == ".safetensors" and not torch_saved):
            return by_name(load_file(path))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inflated = sum(entry.file_size for entry in archive.infolist())
            if inflated > INFLATION * size + (1 << 20):
                raise CheckpointError(
                    f"{path} would inflate from {size / 1e6:.1f} to {inflated / 1e6:,.1f} MB; save it uncompressed"
                )
        with warnings.catch_warnings(), path.open("rb") as file:  # an open file: a path's suffix would decide
            warnings.simplefilter("ignore")  # torch's own, about kinds of tensors that are refused anyway
            return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
    except Exception as error:  # a damaged or hostile pickle raises whatever its bytes lead to
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            raise CheckpointError(
                f"{path} needs code to be run to be read, which is refused; save `network.state_dict()` alone, "
                "best with safetensors.torch.save_file"
            ) from None
        raise CheckpointError(f"{path} is neither safetensors nor a state_dict that torch saved") from None


def check_kind(path: Path, name: str, value: Tensor) -> None:
    """Raise CheckpointError unless `value` is a dense tensor of real floating-point numbers."""
    if value.is_meta or value.is_nested or value.layout is not torch.strided:
        raise CheckpointError(f"{path} holds no dense tensor in {name}; save the network's dense values")
    if value.dtype not in FLOATS:
        kind = str(value.dtype).removeprefix("torch.")
        raise CheckpointError(f"{path} holds {kind} in {name}, expected real floating-point numbers; convert it")
    if value.numel() * value.element_size() > INFLATION * value.untyped_storage().nbytes():
        raise CheckpointError(f"{path} holds {value.numel():,} numbers in {name} that are views of fewer; save copies")
