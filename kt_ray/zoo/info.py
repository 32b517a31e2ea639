"""What lies in a zoo store, as plain numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BINS = 20  # of the accuracy histograms, over [0, 1]


@dataclass(frozen=True)
class ZooInfo:
    """Members (with a target) by split, `brief` ones, rows (with snapshots), accuracies of the former, cost.

    `source_histogram` and `target_histogram` count members in 20 bins of accuracy over [0, 1].
    `device_hours` is what training took, on one CPU core or an actor's share of a GPU.
    """

    uri: str
    pair: str
    dataset: str
    dataset_fingerprint: str
    seed: int
    recipe: dict[str, Any]
    members: dict[str, int]
    rows: int
    shards: int
    bytes: int
    source_accuracy: float | None
    target_accuracy: float | None
    brief: int = 0
    device_hours: float = 0.0
    source_histogram: tuple[int, ...] = ()
    target_histogram: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def describe(uri: str, definition: dict[str, Any], index: pa.Table, shards: int, size: int) -> ZooInfo:
    """The zoo that `definition` (zoo.json) and `index` make, of `size` bytes in `shards` files."""
    members: dict[str, int] = {}
    columns: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
    brief, hours = 0, 0.0
    for name in ("source_accuracy", "target_accuracy"):
        columns[name] = np.array([], np.float64)
    if index.num_rows:
        last = index.filter(index["has_target"])
        members = {entry["values"]: entry["counts"] for entry in last["split"].value_counts().to_pylist()}
        brief = pc.count_distinct(index["id"]).as_py() - last.num_rows
        for name in columns:
            values = last[name].to_numpy()
            columns[name] = values[np.isfinite(values)]
        if "seconds" in index.column_names:
            hours = (pc.sum(index["seconds"]).as_py() or 0.0) / 3600
    source, target = columns["source_accuracy"], columns["target_accuracy"]
    return ZooInfo(
        uri=uri,
        pair=definition["pair"],
        dataset=definition["dataset"]["name"],
        dataset_fingerprint=definition["dataset_fingerprint"],
        seed=definition["seed"],
        recipe=definition["recipe"],
        members=members,
        rows=index.num_rows,
        shards=shards,
        bytes=size,
        source_accuracy=float(source.mean()) if len(source) else None,
        target_accuracy=float(target.mean()) if len(target) else None,
        brief=brief,
        device_hours=hours,
        source_histogram=tuple(np.histogram(source, BINS, (0, 1))[0].tolist()),
        target_histogram=tuple(np.histogram(target, BINS, (0, 1))[0].tolist()),
    )
