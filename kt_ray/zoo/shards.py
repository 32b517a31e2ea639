"""Shards: safetensors files named by their SHA-256, which carry the rows of the index that describe them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch

from kt_ray.networks import State

NAME = re.compile(r"shard-[0-9a-f]{16}\.safetensors")
PLACE = ["shard", "row", "sha256"]  # columns of the index that say where a row lies
EMPTY = pa.table({"id": pa.array([], pa.string()), "shard": pa.array([], pa.string())})
Rows = npt.NDArray[np.int64]


def name_of(digest: str) -> str:
    """File name of the shard with this SHA-256."""
    return f"shard-{digest[:16]}.safetensors"


def pack(parameters: State, rows: pa.Table) -> tuple[str, bytes, pa.Table]:
    """Name and content of the shard of `parameters`, described by `rows`; and the rows of the index for it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    described = {"rows": base64.b64encode(sink.getvalue()).decode()}
    content = safetensors.torch.save({name: value.contiguous() for name, value in parameters.items()}, described)
    digest = hashlib.sha256(content).hexdigest()
    return name_of(digest), content, placed(rows, digest)


def placed(rows: pa.Table, digest: str) -> pa.Table:
    """`rows` with the columns that say where they lie."""
    count = rows.num_rows
    return (
        rows.append_column("shard", pa.array([name_of(digest)] * count))
        .append_column("row", pa.array(range(count), pa.int32()))
        .append_column("sha256", pa.array([digest] * count))
    )


def rows_of(name: str, content: bytes) -> pa.Table | None:
    """The rows of the index that a shard carries; None where the content is not what the name says."""
    digest = hashlib.sha256(content).hexdigest()
    if name != name_of(digest):
        return None
    try:
        (size,) = struct.unpack("<Q", content[:8])
        described = json.loads(content[8 : 8 + size])["__metadata__"]["rows"]
        with pa.ipc.open_stream(base64.b64decode(described, validate=True)) as stream:
            rows = stream.read_all()
        rows.validate(full=True)
    except (struct.error, ValueError, KeyError, TypeError, pa.ArrowException, OSError):
        return None
    return placed(rows, digest)


def shards_of(index: pa.Table) -> Iterator[tuple[str, str, Rows, Rows]]:
    """Each shard that `index` names: name, SHA-256, its rows in the index, and the same rows in the shard."""
    if not index.num_rows:
        return
    order = pc.sort_indices(index, sort_keys=[("shard", "ascending"), ("row", "ascending")]).to_numpy().astype(np.int64)
    codes = index["shard"].combine_chunks().dictionary_encode().indices.to_numpy()[order]
    within = index["row"].to_numpy().astype(np.int64)[order]
    edges = np.flatnonzero(np.diff(codes)) + 1
    for members, rows in zip(np.split(order, edges), np.split(within, edges), strict=True):
        first = int(members[0])
        yield str(index["shard"][first]), str(index["sha256"][first]), members, rows
