"""Network checkpoints of users: safetensors, or a `state_dict` that torch loads without running code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kt_ray.errors import CheckpointError
from kt_ray.networks.stacked import State


def read_state(path: Path) -> State:
    """The named tensors in the file at `path`: `.safetensors`, else a `state_dict` read with `weights_only=True`.

    Raises CheckpointError where it is missing, is neither, or would need code to be run.
    """
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from None
    except Exception as error:  # a damaged or hostile pickle raises whatever its bytes lead to
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            raise CheckpointError(
                f"{path} needs code to be run to be read, which is refused; save `network.state_dict()` alone, "
                "best with safetensors.torch.save_file"
            ) from None
        raise CheckpointError(f"{path} is neither safetensors nor a state_dict that torch saved") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a state_dict of named tensors")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def read_network(path: Path, network: nn.Module) -> State:
    """The file at `path` as the parameters and buffers of `network`, float32; BN's step counters may be missing.

    Raises CheckpointError naming the first names or shapes that differ, or the first tensor that is not finite.
    """
    state = read_state(path)
    expected = network.state_dict()
    problems = []
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name not in state:
            problems.append(f"{name} is missing (expected {_shape(tensor)})")
        elif state[name].shape != tensor.shape:
            problems.append(f"{name} has shape {_shape(state[name])}, expected {_shape(tensor)}")
    problems += [f"{name} is not a parameter of this network" for name in state if name not in expected]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{path} does not fit the network ({', '.join(name for name, _ in network.named_children())}): "
            f"{'; '.join(problems[:3])}{more}; check the configured network and its widths"
        )
    state = {name: value.float() for name, value in state.items() if not name.endswith("num_batches_tracked")}
    for name, value in state.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{path} holds NaN or infinity in {name}; did its training diverge?")
    return state


def write_state(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """`state` as a safetensors file, written beside `path` and renamed into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary, dict(metadata or {}))
    temporary.replace(path)


def _shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape) or "scalar"
