"""`index.parquet`: a row for each member and snapshot, in which shard it is stored, and what is known about it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kt_ray._io.checksum import BLANK, KEY, checksum_holds, with_checksum
from kt_ray._io.text import first_line
from kt_ray.zoo.definition import Damaged

MENDS = "`kt-ray zoo build FILE` with the zoo's study file makes it anew from the shards"
SHARD_NAME = re.compile(r"shard-[0-9a-f]{16}\.safetensors")
PLACE = ["shard", "row", "sha256"]  # columns that say where a row is stored
TYPES = {
    "id": pa.string(),
    "split": pa.string(),
    "epoch": pa.int32(),
    "has_target": pa.bool_(),
    "shard": pa.string(),
    "row": pa.int32(),
    "sha256": pa.string(),
}
EMPTY = pa.schema(list(TYPES.items())).empty_table()
Rows = npt.NDArray[np.int64]


def encode(index: pa.Table) -> bytes:
    """Return the content of `index.parquet`, with its SHA-256."""
    sink = pa.BufferOutputStream()
    pq.write_table(index.replace_schema_metadata({KEY: BLANK}), sink)
    return with_checksum(sink.getvalue().to_pybytes())


def decode(content: bytes, path: str, *, checksum: bool) -> pa.Table:
    """Return the index in `content`, read from `path`; with `checksum`, it must carry its SHA-256.

    Raises Damaged if it is not what was written, or names a file that is no shard of this zoo.
    """
    holds = checksum_holds(content)
    if holds is False or (checksum and holds is None):
        raise Damaged(f"{path} is damaged: its SHA-256 is not the one that it carries", MENDS)
    try:
        # Not pq.read_table, whose threads can abort a process that ends soon after (apache/arrow#34314).
        table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        table.validate(full=True)
    except Exception as error:  # whatever the bytes of a damaged file lead Arrow to
        raise Damaged(f"{path} is damaged ({first_line(error)})", MENDS) from None
    for name, kind in TYPES.items():
        if name not in table.column_names:
            raise Damaged(f"{path} has no column {name}", MENDS)
        if table.schema.field(name).type != kind or table[name].null_count:
            raise Damaged(f"{path} holds {table.schema.field(name).type} in {name}, expected {kind}", MENDS)
    for shard in table["shard"].unique().to_pylist():
        if not SHARD_NAME.fullmatch(shard):  # never a path to elsewhere
            raise Damaged(f"{path} names {shard!r}, which is no shard of this zoo", MENDS)
    return table.replace_schema_metadata(None)


def placed(rows: pa.Table, shard: str, digest: str) -> pa.Table:
    """Return `rows` with the columns that say where they are stored: in `shard`, whose SHA-256 is `digest`."""
    count = rows.num_rows
    return (
        rows.append_column("shard", pa.array([shard] * count, pa.string()))
        .append_column("row", pa.array(range(count), pa.int32()))
        .append_column("sha256", pa.array([digest] * count, pa.string()))
    )


def without(rows: pa.Table, column: str, values: pa.Array) -> pa.Table:
    """Return the rows whose `column` is none of `values`."""
    return rows.filter(pc.invert(pc.is_in(rows[column], value_set=values)))


def joined(tables: list[pa.Table]) -> pa.Table:
    """Return the rows of all `tables`; a column that one of them has not is null there."""
    tables = [table for table in tables if table.num_rows]
    return pa.concat_tables(tables, promote_options="default") if tables else EMPTY


def shards_of(index: pa.Table) -> Iterator[tuple[str, str, Rows, Rows]]:
    """Yield each shard that `index` names: name, SHA-256, its rows in the index, and the same rows in the shard."""
    if not index.num_rows:
        return
    order = pc.sort_indices(index, sort_keys=[("shard", "ascending"), ("row", "ascending")]).to_numpy().astype(np.int64)
    codes = index["shard"].combine_chunks().dictionary_encode().indices.to_numpy()[order]
    within = index["row"].to_numpy().astype(np.int64)[order]
    edges = np.flatnonzero(np.diff(codes)) + 1
    for members, rows in zip(np.split(order, edges), np.split(within, edges), strict=True):
        first = int(members[0])
        yield str(index["shard"][first]), str(index["sha256"][first]), members, rows


def same_rows(some: pa.Table, others: pa.Table) -> bool:
    """Return whether `some` has the rows of `others` to the last bit, in all columns of `others`."""
    if some.num_rows != others.num_rows or not set(others.column_names) <= set(some.column_names):
        return False
    return all(_bits(some[name], kind=others[name].type).equals(_bits(others[name])) for name in others.column_names)


def _bits(column: pa.ChunkedArray, kind: pa.DataType | None = None) -> pa.Array:
    """Return the column as one array, floats as the integers of their bits: NaN equals itself there."""
    if kind is not None and column.type != kind:
        return pa.array([])
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return array.view(pa.int64()) if pa.types.is_float64(array.type) else array
