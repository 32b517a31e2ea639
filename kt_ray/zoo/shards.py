"""Shards: safetensors files named by their SHA-256, which carry the rows of the index that describe them and the zoo's
definition, so that both can be made anew from them."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import Any

import pyarrow as pa
import safetensors.torch

from kt_ray.networks import State
from kt_ray.zoo.definition import Damaged, Shapes
from kt_ray.zoo.index import Rows, placed, same_rows

DEFINITION = b"kt_ray.zoo"  # key of the definition in the metadata of the rows


def name_of(digest: str) -> str:
    """Return the file name of the shard with this SHA-256."""
    return f"shard-{digest[:16]}.safetensors"


def pack(parameters: State, rows: pa.Table, definition: dict[str, Any]) -> tuple[str, bytes, pa.Table]:
    """Return name and content of the shard of `parameters`, described by `rows`, and the rows of the index for it."""
    sink = pa.BufferOutputStream()
    described = rows.replace_schema_metadata({DEFINITION: json.dumps(definition)})
    with pa.ipc.new_stream(sink, described.schema) as stream:
        stream.write_table(described)
    content = safetensors.torch.save(
        {name: value.contiguous() for name, value in parameters.items()},
        {"rows": base64.b64encode(sink.getvalue()).decode()},
    )
    digest = hashlib.sha256(content).hexdigest()
    return name_of(digest), content, placed(rows, name_of(digest), digest)


class Header:
    """What the content of a shard says about itself: the shapes of its tensors, its rows, the zoo's definition.

    Raises Damaged if the content is no safetensors file.
    """

    def __init__(self, content: bytes) -> None:
        try:
            (size,) = struct.unpack("<Q", content[:8])
            header = json.loads(content[8 : 8 + size])
            metadata = header.pop("__metadata__", {})
            self.shapes: Shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
            self.rows: pa.Table | None = None
            self.definition: dict[str, Any] | None = None
            if "rows" in metadata:
                self.rows, self.definition = _described(metadata["rows"])
        except Exception as error:  # whatever the bytes of a damaged file lead the parsers to
            raise Damaged(f"it is no shard ({type(error).__name__})") from None


def _described(text: str) -> tuple[pa.Table, dict[str, Any] | None]:
    """Return the rows that a shard carries, and the definition if it carries one (older ones do not)."""
    with pa.ipc.open_stream(base64.b64decode(text, validate=True)) as stream:
        rows = stream.read_all()
    rows.validate(full=True)
    metadata = rows.schema.metadata or {}
    definition = json.loads(metadata[DEFINITION]) if DEFINITION in metadata else None
    return rows.replace_schema_metadata(None), definition


def check(content: bytes, digest: str, index: pa.Table, rows: Rows, shapes: Shapes) -> None:
    """Check that a shard is the one of SHA-256 `digest`, and that `rows` of it are what `index` says.

    `index` has one row for each of `rows`; `shapes` are those of one member's tensors. Raises Damaged with what is
    wrong.
    """
    if hashlib.sha256(content).hexdigest() != digest:
        raise Damaged("its SHA-256 is not the index's")
    header = Header(content)
    counts = {shape[:1] for shape in header.shapes.values()}
    if {name: shape[1:] for name, shape in header.shapes.items()} != shapes or len(counts) != 1:
        raise Damaged("its tensors are not those of the networks that zoo.json describes")
    ((count,),) = counts
    if rows.min() < 0 or rows.max() >= count or len(set(rows.tolist())) != len(rows):
        raise Damaged("it does not hold the rows that the index says")
    if header.rows is not None and not same_rows(index, header.rows.take(pa.array(rows))):
        raise Damaged("its rows are not those of the index")


def whole(name: str, content: bytes) -> Header | None:
    """Return the header of the shard `name`; None if the content is not what the name says."""
    if name != name_of(hashlib.sha256(content).hexdigest()):
        return None
    try:
        return Header(content)
    except Damaged:
        return None


def rows_of(name: str, content: bytes) -> pa.Table | None:
    """Return the rows of the index that a shard carries; None if the content is not what the name says."""
    header = whole(name, content)
    if header is None or header.rows is None:
        return None
    return placed(header.rows, name, hashlib.sha256(content).hexdigest())
