"""Safetensors files that kt_ray writes: named tensors, metadata, and the SHA-256 of the whole file in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from kt_ray._io.checksum import BLANK, KEY, checksum_holds, with_checksum
from kt_ray._io.files import write_whole
from kt_ray._io.text import first_line
from kt_ray.errors import CheckpointError
from kt_ray.networks.stacked import State, by_name


def write_state(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write `state` as a safetensors file with `metadata` and its own SHA-256 in the header, whole or not at all.

    A file without metadata is in someone else's format and carries no SHA-256. Directories above `path` are made.
    Raises CheckpointError if it cannot be written.
    """
    # Copies: names of a state_dict may share a tensor, which safetensors does not write.
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
    content = (
        save(copies) if metadata is None else with_checksum(_sorted_metadata(save(copies, {**metadata, KEY: BLANK})))
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}); check rights and space, or name another file"
        ) from error


def _sorted_metadata(content: bytes) -> bytes:
    """Return a safetensors file with its metadata sorted: safetensors orders it at random, and a file has one hash."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def read_written(path: Path) -> tuple[State, dict[str, str]]:
    """Return the tensors and the metadata that `write_state` wrote to `path`.

    Raises CheckpointError if the file is missing, is no whole safetensors file, or does not have the SHA-256 that it
    carries; files from before they carried one are read too.
    """
    try:
        content = path.read_bytes()
        tensors = by_name(load(content))
        if checksum_holds(content) is False:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one that it carries")
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = dict(header.get("__metadata__", {}))
    except FileNotFoundError:
        raise CheckpointError(f"no such file: {path}") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {first_line(error)}") from None
    metadata.pop(KEY, None)
    return tensors, metadata
