"""Zoos on disk or in object storage: safetensors shards, a Parquet index, `zoo.json`.

A shard belongs to the zoo once the index names it. Files are written beside their place and then renamed, shards
are named by their SHA-256, and every read checks it. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
import torch

from kt_ray import __version__
from kt_ray._io.display import Displayed
from kt_ray._io.text import first_line
from kt_ray.config import NetworkConfig, PairName, RecipeConfig, Split, ZooConfig
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
from kt_ray.networks import Architecture, State
from kt_ray.zoo import shards
from kt_ray.zoo.filesystem import Files
from kt_ray.zoo.info import ZooInfo, describe
from kt_ray.zoo.members import Zoo

SCHEMA_VERSION = 1
DEFINITION = "zoo.json"
INDEX = "index.parquet"
COLUMNS = {"id", "split", "epoch", "has_target", "shard", "row", "sha256"}


class ZooStore(Displayed):
    """The zoo at `uri`: a directory or a `pyarrow.fs` URI such as `s3://bucket/zoos/digits`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.files = Files(uri)

    def display_title(self) -> str:
        """Return where the zoo is stored."""
        return f"zoo at {self.uri}"

    def display_rows(self) -> list[dict[str, str]]:
        """Return what is in it; no rows if none was created."""
        return [row for row in self.info().facts() if row[""] != "uri"] if self.exists() else []

    def exists(self) -> bool:
        """Whether a zoo was created here."""
        return self.files.exists(DEFINITION)

    def create(self, config: ZooConfig, pair: PairName, dataset: Dataset) -> None:
        """Write `zoo.json`, or check that the zoo here is this one.

        Raises ZooError where a zoo of another pair, seed, network, recipe or dataset lies here.
        """
        wanted = {
            "schema_version": SCHEMA_VERSION,
            "pair": pair,
            "seed": config.seed,
            "network": config.network.model_dump(mode="json"),
            "recipe": config.recipe.model_dump(mode="json"),
            "dataset": dataset.config.model_dump(mode="json"),
            "dataset_fingerprint": dataset.fingerprint,
            "image_shape": list(dataset.image_shape),
            "classes": dataset.classes,
        }
        if not self.exists():
            versions = {"kt_ray": __version__, "torch": str(torch.__version__), "pyarrow": pa.__version__}
            self.files.write(DEFINITION, json.dumps(wanted | {"versions": versions}, indent=1).encode())
            return
        present = self.definition()
        present["recipe"] = recipe_of(present).model_dump(mode="json")  # a zoo may be older than a field of the recipe
        for key, value in wanted.items():
            if present.get(key) != value:
                raise ZooError(
                    f"the zoo at {self.uri} has {key}={_short(present.get(key), value)}, but "
                    f"{_short(value, present.get(key))} was asked for; choose another zoo.name"
                )

    def copy_definition(self, other: ZooStore) -> None:
        """Make this an empty zoo like `other`."""
        self.files.write(DEFINITION, json.dumps(other.definition(), indent=1).encode())

    def definition(self) -> dict[str, Any]:
        """The content of `zoo.json`. Raises ZooError where it is missing or not readable."""
        try:
            content: dict[str, Any] = json.loads(self.files.read(DEFINITION))
        except FileNotFoundError:
            raise ZooError(f"no zoo at {self.uri}; `kt-ray zoo build STUDY.yaml` makes one") from None
        except (ValueError, RecursionError) as error:
            path = self.files.path(DEFINITION)
            raise ZooError(f"{path} is damaged ({error}); remove the zoo and build again") from None
        if not isinstance(content, dict):
            raise ZooError(f"{self.files.path(DEFINITION)} holds a {type(content).__name__}, expected a mapping")
        if content.get("schema_version") != SCHEMA_VERSION:
            raise ZooError(
                f"the zoo at {self.uri} has schema version {content.get('schema_version')}, expected {SCHEMA_VERSION}; "
                "use the kt_ray version that built it, or build again under another name"
            )
        try:
            architecture_of(content)
            recipe_of(content)
            str(content["dataset"]["name"]), str(content["dataset_fingerprint"]), int(content["seed"])
        except (KeyError, TypeError, ValueError) as error:  # pydantic's errors are ValueErrors
            path, reason = self.files.path(DEFINITION), first_line(error)
            raise ZooError(f"{path} does not describe a zoo ({type(error).__name__}: {reason})") from None
        return content

    def index(self) -> pa.Table:
        """A row a member and snapshot; no rows where nothing was added yet. Raises ZooError where it is damaged."""
        try:
            # Threads of Arrow's that read Parquet can abort a process that ends soon after (apache/arrow#34314).
            table = pq.read_table(pa.BufferReader(self.files.read(INDEX)), use_threads=False, pre_buffer=False)
            lacking = COLUMNS - set(table.column_names)
            if lacking:
                raise ZooError(f"{self.files.path(INDEX)} has no column {', '.join(sorted(lacking))}; build again")
            for shard in table["shard"].unique().to_pylist():
                if not shards.NAME.fullmatch(str(shard)):  # never a path to elsewhere
                    raise ZooError(f"{self.files.path(INDEX)} names {shard!r}, which is no shard of this zoo")
            return table
        except FileNotFoundError:
            return shards.EMPTY
        except (pa.ArrowException, OSError) as error:
            reason = first_line(error)
            raise ZooError(
                f"{self.files.path(INDEX)} is damaged ({reason}); remove it and build again: shards are then retrained"
            ) from None

    def present(self) -> set[str]:
        """Ids of the members in the zoo."""
        return set(self.index()["id"].to_pylist())

    def add(self, parameters: State, rows: pa.Table) -> None:
        """Add members as one shard: rows of `parameters` are described by `rows`. Ids already present are left out."""
        with self.files.lock():
            index = self.index()
            new = pc.invert(pc.is_in(rows["id"], value_set=index["id"].combine_chunks()))
            chosen = torch.from_numpy(pc.indices_nonzero(new).to_numpy().astype("int64"))
            if not len(chosen):
                return
            stack = {name: value[chosen] for name, value in parameters.items()}
            shard, content, rows = shards.pack(stack, rows.take(pa.array(chosen.numpy())))
            self.files.write(shard, content)
            index = rows if index.num_rows == 0 else pa.concat_tables([index, rows], promote_options="default")
            self._write_index(index)

    def discard(self, names: set[str]) -> None:
        """Take the rows of the shards `names` out of the index; a build trains their members again."""
        with self.files.lock():
            index = self.index()
            self._write_index(index.filter(pc.invert(pc.is_in(index["shard"], value_set=pa.array(sorted(names))))))

    def mend(self) -> list[str]:
        """Bring the zoo back to what is whole, and say what was damaged, one line each.

        A damaged index is made anew from the shards, which carry their rows and are named by their hash; members of
        damaged or missing shards are taken out of the index, so that a build trains them again.
        """
        faults = []
        with self.files.lock():
            self.files.sweep()
            try:
                self.index()
            except ZooError as error:
                faults.append(f"{error}; made anew from the shards")
                self._write_index(self._index_of_shards())
        damaged = self.damaged()
        if damaged:
            self.discard(set(damaged))
        return faults + list(damaged.values())

    def _index_of_shards(self) -> pa.Table:
        """The index that the shards' own rows make; shards that are not what their name says are left out."""
        tables: list[pa.Table] = []
        seen: set[str] = set()
        for shard in self.files.names():
            if not shards.NAME.fullmatch(shard):
                continue
            rows = shards.rows_of(shard, self.files.read(shard))
            if rows is not None and not seen.intersection(rows["id"].to_pylist()):
                seen.update(rows["id"].to_pylist())
                tables.append(rows)
        return pa.concat_tables(tables, promote_options="default") if tables else shards.EMPTY

    def read(self, split: Split | None = None) -> Zoo:
        """The zoo, or its `split`, in the order of ids and epochs. Raises ZooError where a shard is damaged."""
        definition, index = self.definition(), self.index()
        if split is not None and index.num_rows:
            index = index.filter(pc.equal(index["split"], split))
        if index.num_rows == 0:
            raise ZooError(f"the zoo at {self.uri} has no members{f' in {split}' if split else ''}; build it first")
        order = pc.sort_indices(index, sort_keys=[("id", "ascending"), ("epoch", "ascending")])
        place = np.empty(len(order), np.int64)  # of each row of the index in the zoo
        place[order.to_numpy()] = np.arange(len(order))
        parameters: State = {}
        for stack, rows in self._checked(index):
            if not parameters:  # filled shard by shard, so that a zoo costs its bytes and one shard more
                parameters = {name: value.new_empty(len(place), *value.shape[1:]) for name, value in stack.items()}
            goal = torch.from_numpy(place[rows])
            for name, value in stack.items():
                parameters[name][goal] = value
        return Zoo(
            architecture_of(definition),
            parameters,
            index.drop_columns(shards.PLACE).take(order),
            _fingerprint(definition, index),
            definition["dataset_fingerprint"],
        )

    def stream(self, split: Split | None = None) -> Iterator[Zoo]:
        """The zoo shard by shard, each checked, in the order of the index; for zoos too large to hold twice."""
        definition, index = self.definition(), self.index()
        if split is not None and index.num_rows:
            index = index.filter(pc.equal(index["split"], split))
        architecture, fingerprint = architecture_of(definition), _fingerprint(definition, index)
        for stack, rows in self._checked(index):
            part = index.take(pa.array(rows)).drop_columns(shards.PLACE)
            yield Zoo(architecture, stack, part, fingerprint, definition["dataset_fingerprint"])

    def _checked(self, index: pa.Table) -> Iterator[tuple[State, shards.Rows]]:
        """The rows of each shard that `index` names, and which rows of `index` they are. Checks every hash."""
        for shard, digest, members, rows in shards.shards_of(index):
            content = self.files.read(shard, missing=f"{shard} is in the index of {self.uri}, but is missing")
            if hashlib.sha256(content).hexdigest() != digest:
                raise ZooError(
                    f"{self.files.path(shard)} is damaged: its SHA-256 is not the index's; "
                    "`kt-ray zoo build` trains its members again"
                )
            try:
                stack = safetensors.torch.load(content)
                whole = len(rows) == len(next(iter(stack.values()))) and bool((rows == np.arange(len(rows))).all())
                chosen = torch.from_numpy(rows)
                yield stack if whole else {name: value[chosen] for name, value in stack.items()}, members
            except (safetensors.SafetensorError, IndexError, StopIteration) as error:
                raise ZooError(f"{self.files.path(shard)} does not hold what the index says ({error})") from None

    def damaged(self) -> dict[str, str]:
        """The shards that are missing, cut off or altered, with what is wrong."""
        faults = {}
        for shard, digest, _, _ in shards.shards_of(self.index()):
            try:
                content = self.files.read(shard)
            except FileNotFoundError:
                faults[shard] = f"{self.files.path(shard)} is missing"
                continue
            if hashlib.sha256(content).hexdigest() != digest:
                faults[shard] = f"{self.files.path(shard)} is damaged: its SHA-256 is not the index's"
        return faults

    def verify(self) -> list[str]:
        """Check every file and hash; one line for each damage."""
        try:
            self.definition()
            return list(self.damaged().values())
        except ZooError as error:
            return [str(error)]

    def info(self) -> ZooInfo:
        """Counts, bytes and accuracies. Raises ZooError where there is no zoo."""
        definition, index = self.definition(), self.index()
        names = index["shard"].unique().to_pylist()
        return describe(self.uri, definition, index, len(names), self.files.size(names))

    def _write_index(self, index: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(index, sink)
        self.files.write(INDEX, sink.getvalue())


def architecture_of(definition: dict[str, Any]) -> Architecture:
    """The architecture that `zoo.json` describes."""
    channels, height, width = (int(size) for size in definition["image_shape"])
    if definition["pair"] not in get_args(PairName):
        raise ValueError(f"unknown block pair {definition['pair']!r}")
    network = NetworkConfig.model_validate(definition["network"])
    return Architecture(definition["pair"], network, (channels, height, width), int(definition["classes"]))


def recipe_of(definition: dict[str, Any]) -> RecipeConfig:
    """The recipe that `zoo.json` describes."""
    return RecipeConfig.model_validate(definition["recipe"])


def _fingerprint(definition: dict[str, Any], index: pa.Table) -> str:
    """What trained the zoo and which members it has, 16 hexadecimal digits; not which shard holds which."""
    trained = {key: value for key, value in definition.items() if key != "versions"}
    rows = sorted(zip(index["id"].to_pylist(), index["epoch"].to_pylist(), strict=True))
    return hashlib.sha256(json.dumps([trained, rows], sort_keys=True).encode()).hexdigest()[:16]


def _short(value: Any, other: Any) -> str:
    """`value` for a message: of two mappings only what differs."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {key: entry for key, entry in value.items() if other.get(key) != entry}
    return json.dumps(value)
