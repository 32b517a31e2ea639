"""The contents of a zoo as plain numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kt_ray.config import NetworkChoice, PairChoice

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
        return asdict(self)

    def facts(self) -> list[dict[str, str]]:
        """A line a fact, for people: recipes and histograms only as far as they say something."""
        recipe = {phase: value for phase, value in self.recipe.items() if isinstance(value, dict)}
        others = {name: value for name, value in self.recipe.items() if name not in recipe}
        found: dict[str, str] = {
            "uri": self.uri,
            "pair": self.pair,
            "dataset": f"{self.dataset}, {self.dataset_fingerprint}",
            "seed": str(self.seed),
            "members": ", ".join(f"{count:,} {split}" for split, count in self.members.items()) or "none",
            "brief sources": f"{self.brief:,}",
            "rows, shards": f"{self.rows:,}, {self.shards:,}",
            "size": f"{self.bytes / 1e6:,.1f} MB",
            "device-hours": f"{self.device_hours:.2f}",
            **{f"recipe: {phase}": _set(value) for phase, value in recipe.items()},
            "recipe": _set(others),
            "source accuracy": _accuracy(self.source_accuracy, self.source_histogram),
            "target accuracy": _accuracy(self.target_accuracy, self.target_histogram),
        }
        return [{"": name, "value": value} for name, value in found.items()]


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
        pair=_subject(definition),
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


def _subject(definition: dict[str, Any]) -> str:
    """The block pair, and for a registered network its site and name."""
    choice, network = PairChoice.model_validate(definition["pair"]), definition["network"]
    if isinstance(network, dict) and "name" not in network:  # the paper's, by its widths
        return choice.name
    return f"{choice} at {choice.site or 'several sites'} of {NetworkChoice.model_validate(network)}"


def _set(options: dict[str, Any]) -> str:
    """What of `options` is set, as `name value` pairs."""
    return ", ".join(f"{name} {value}" for name, value in options.items() if value not in (None, [], ()))


def _accuracy(mean: float | None, histogram: tuple[int, ...]) -> str:
    """Return the mean, and how many members are in each bin that has any."""
    if mean is None:
        return "-"
    bins = [
        f"{count:,} in {place / BINS:.2f}–{(place + 1) / BINS:.2f}" for place, count in enumerate(histogram) if count
    ]
    return f"mean {mean:.4f}; " + ", ".join(bins)
