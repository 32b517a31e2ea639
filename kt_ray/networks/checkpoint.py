"""Network checkpoints of users: safetensors, or a `state_dict` that torch loads without running code."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kt_ray._io.files import write_whole
from kt_ray.errors import CheckpointError
from kt_ray.networks.stacked import State

STEPS = "num_batches_tracked"  # BN's counter, an integer that changes no output
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def read_state(path: Path) -> State:
    """The named tensors in the file at `path`: `.safetensors`, else a `state_dict` read with `weights_only=True`.

    All are dense and of real floating-point numbers, but for BN's step counters. Raises CheckpointError where the file
    is missing, holds something else, or would need code to be run.
    """
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    content = _content(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not _is_state(content):
        raise CheckpointError(f"{path} holds {_description(content)}")
    state = {str(name).removeprefix("module."): value for name, value in content.items()}
    for name, value in state.items():
        if not name.endswith(STEPS) and (value.is_meta or value.is_nested or value.layout is not torch.strided):
            raise CheckpointError(f"{path} holds no dense tensor in {name}; save the network's dense values")
        if not name.endswith(STEPS) and value.dtype not in FLOATS:
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(f"{path} holds {kind} in {name}, expected real floating-point numbers; convert it")
    return state


def read_network(path: Path, network: nn.Module) -> State:
    """The file at `path` as the parameters and buffers of `network`, float32; BN's step counters may be missing.

    Raises CheckpointError as `read_state` and `network_state` do.
    """
    return network_state(read_state(path), network, path)


def network_state(state: State, network: nn.Module, path: Path) -> State:
    """`state`, read from `path`, as the parameters and buffers of `network`, float32, without BN's step counters.

    Raises CheckpointError naming the first names or shapes that differ, or the first tensor that is not finite.
    """
    expected = network.state_dict()
    problems = []
    for name, tensor in expected.items():
        if name.endswith(STEPS):
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
    # Copies: names of a state_dict may share a tensor, which safetensors does not write.
    state = {
        name: value.detach().to(torch.float32, copy=True) for name, value in state.items() if not name.endswith(STEPS)
    }
    for name, value in state.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{path} holds NaN or infinity in {name}; did its training diverge?")
    return state


def write_state(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """`state` as a safetensors file with `metadata` in its header, whole or not at all.

    Directories above `path` are made. Raises CheckpointError where it cannot be written.
    """
    content = save({name: value.detach().cpu().contiguous() for name, value in state.items()}, dict(metadata or {}))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}); check rights and space, or name another file"
        ) from error


def _content(path: Path) -> Any:
    """What lies in the file, whatever it is. Raises CheckpointError where it is damaged or needs code to be read."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about kinds of tensors that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from None
    except Exception as error:  # a damaged or hostile pickle raises whatever its bytes lead to
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            raise CheckpointError(
                f"{path} needs code to be run to be read, which is refused; save `network.state_dict()` alone, "
                "best with safetensors.torch.save_file"
            ) from None
        raise CheckpointError(f"{path} is neither safetensors nor a state_dict that torch saved") from None


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())


def _description(content: Any) -> str:
    """What is wrong with `content`, which is no state_dict, and what to do."""
    wanted = "expected a state_dict of named tensors"
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}; {wanted}"
    others = [f"{key!r} ({type(value).__name__})" for key, value in content.items() if not isinstance(value, Tensor)]
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    nested = [key for key, value in content.items() if _is_state(value) and value]
    hint = f": {nested[0]!r} holds one, so save `torch.load(…)[{nested[0]!r}]` alone" if nested else ""
    return f"a {type(content).__name__} with {', '.join(others[:5])}{more}; {wanted}{hint}"


def _shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape) or "scalar"
