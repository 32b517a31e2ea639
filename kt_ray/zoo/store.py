"""Zoos on disk or in object storage: safetensors shards, a Parquet index, `zoo.json`.

A shard belongs to the zoo once the index names it. Files are written beside their place and then renamed, shards
are named by their SHA-256, and every read checks it. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
import torch

from kt_ray import __version__
from kt_ray.config import NetworkConfig, PairName, RecipeConfig, Split, ZooConfig
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
from kt_ray.networks import Architecture, State
from kt_ray.zoo.files import Files
from kt_ray.zoo.members import Zoo

SCHEMA_VERSION = 1
DEFINITION = "zoo.json"
INDEX = "index.parquet"
SHARD = re.compile(r"shard-[0-9a-f]{16}\.safetensors")
COLUMNS = {"id", "split", "epoch", "has_target", "shard", "row", "sha256"}


@dataclass(frozen=True)
class ZooInfo:
    """What lies in a zoo store, as plain numbers."""

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

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class ZooStore:
    """The zoo at `uri`: a directory or a `pyarrow.fs` URI such as `s3://bucket/zoos/digits`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.files = Files(uri)

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
        for key, value in wanted.items():
            if present.get(key) != value:
                raise ZooError(
                    f"the zoo at {self.uri} has {key}={_short(present.get(key), value)}, but "
                    f"{_short(value, present.get(key))} was asked for; choose another zoo.name"
                )

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
            path, reason = self.files.path(DEFINITION), str(error).splitlines()[0]
            raise ZooError(f"{path} does not describe a zoo ({type(error).__name__}: {reason})") from None
        return content

    def index(self) -> pa.Table:
        """A row a member and snapshot; no rows where nothing was added yet. Raises ZooError where it is damaged."""
        try:
            table = pq.read_table(pa.BufferReader(self.files.read(INDEX)))
            lacking = COLUMNS - set(table.column_names)
            if lacking:
                raise ZooError(f"{self.files.path(INDEX)} has no column {', '.join(sorted(lacking))}; build again")
            for shard in table["shard"].unique().to_pylist():
                if not SHARD.fullmatch(str(shard)):  # never a path to elsewhere
                    raise ZooError(f"{self.files.path(INDEX)} names {shard!r}, which is no shard of this zoo")
            return table
        except FileNotFoundError:
            return pa.table({"id": pa.array([], pa.string()), "shard": pa.array([], pa.string())})
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
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
            content = safetensors.torch.save({name: value[chosen].contiguous() for name, value in parameters.items()})
            digest = hashlib.sha256(content).hexdigest()
            shard = f"shard-{digest[:16]}.safetensors"
            rows = (
                rows.take(pa.array(chosen.numpy()))
                .append_column("shard", pa.array([shard] * len(chosen)))
                .append_column("row", pa.array(range(len(chosen)), pa.int32()))
                .append_column("sha256", pa.array([digest] * len(chosen)))
            )
            self.files.write(shard, content)
            index = rows if index.num_rows == 0 else pa.concat_tables([index, rows], promote_options="default")
            self._write_index(index)

    def discard(self, shards: set[str]) -> None:
        """Take the rows of `shards` out of the index; their members are missing then, and are trained again."""
        with self.files.lock():
            index = self.index()
            self._write_index(index.filter(pc.invert(pc.is_in(index["shard"], value_set=pa.array(sorted(shards))))))

    def read(self, split: Split | None = None) -> Zoo:
        """The zoo, or its `split`, in the order of ids and epochs. Raises ZooError where a shard is damaged."""
        definition, index = self.definition(), self.index()
        if split is not None and index.num_rows:
            index = index.filter(pc.equal(index["split"], split))
        if index.num_rows == 0:
            raise ZooError(f"the zoo at {self.uri} has no members{f' in {split}' if split else ''}; build it first")
        index = index.sort_by([("shard", "ascending"), ("row", "ascending")])
        stacks: list[State] = []
        for shard, digest, rows in _shards(index):
            content = self.files.read(shard, missing=f"{shard} is in the index of {self.uri}, but is missing")
            if hashlib.sha256(content).hexdigest() != digest:
                raise ZooError(
                    f"{self.files.path(shard)} is damaged: its SHA-256 is not the index's; "
                    "`kt-ray zoo build` trains its members again"
                )
            try:
                stack = safetensors.torch.load(content)
                stacks.append({name: value[rows] for name, value in stack.items()})
            except (safetensors.SafetensorError, IndexError) as error:
                raise ZooError(f"{self.files.path(shard)} does not hold what the index says ({error})") from None
        parameters = {name: torch.cat([stack[name] for stack in stacks]) for name in stacks[0]}
        order = pc.sort_indices(index, sort_keys=[("id", "ascending"), ("epoch", "ascending")])
        zoo = Zoo(
            architecture_of(definition),
            parameters,
            index.drop_columns(["shard", "row", "sha256"]),
            _fingerprint(definition, index),
            definition["dataset_fingerprint"],
        )
        return zoo.take(torch.from_numpy(order.to_numpy().astype("int64")))

    def damaged(self) -> dict[str, str]:
        """The shards that are missing, cut off or altered, with what is wrong."""
        faults = {}
        for shard, digest, _ in _shards(self.index()):
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
        members: dict[str, int] = {}
        means: dict[str, float | None] = {"source_accuracy": None, "target_accuracy": None}
        if index.num_rows:
            last = index.filter(index["has_target"])
            counts = last["split"].value_counts().to_pylist()
            members = {count["values"]: count["counts"] for count in counts}
            means = {name: pc.mean(last[name].filter(pc.is_finite(last[name]))).as_py() for name in means}
        shards = sorted(set(index["shard"].to_pylist()))
        return ZooInfo(
            uri=self.uri,
            pair=definition["pair"],
            dataset=definition["dataset"]["name"],
            dataset_fingerprint=definition["dataset_fingerprint"],
            seed=definition["seed"],
            recipe=definition["recipe"],
            members=members,
            rows=index.num_rows,
            shards=len(shards),
            bytes=self.files.size(shards),
            **means,
        )

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


def _shards(index: pa.Table) -> Iterator[tuple[str, str, list[int]]]:
    """Name, SHA-256 and wanted rows of each shard, in the order of the index."""
    wanted: dict[tuple[str, str], list[int]] = {}
    if index.num_rows:
        columns = (index[name].to_pylist() for name in ("shard", "sha256", "row"))
        for shard, digest, row in zip(*columns, strict=True):
            wanted.setdefault((shard, digest), []).append(row)
    for (shard, digest), rows in wanted.items():
        yield shard, digest, rows


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
