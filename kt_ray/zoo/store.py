"""Zoos on disk or in object storage: safetensors shards, a Parquet index, `zoo.json`.

A shard belongs to the zoo once the index names it. Files are written beside their place and then renamed; shards are
named by their SHA-256, index and `zoo.json` carry theirs, and every read checks it. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors
import safetensors.torch
import torch

from kt_ray import __version__
from kt_ray._io.display import Displayed
from kt_ray.config import PairChoice, Split, ZooConfig
from kt_ray.config.code import hashes
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
from kt_ray.networks import State, architecture_of, stacked
from kt_ray.study_code import code_of
from kt_ray.zoo import definition as definitions
from kt_ray.zoo import index as indices
from kt_ray.zoo import shards
from kt_ray.zoo.definition import Damaged, OtherCode, recipe_of, shapes_of
from kt_ray.zoo.filesystem import Files
from kt_ray.zoo.info import ZooInfo, describe
from kt_ray.zoo.members import AnyZoo, Member, members_of, zoo_of

logger = logging.getLogger(__name__)

DEFINITION = "zoo.json"
ZOO_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
INDEX = "index.parquet"


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
        """Return whether there is a zoo here, whole or damaged."""
        return self.files.exists(DEFINITION) or bool(self._shard_names())

    def create(self, config: ZooConfig, pair: str | PairChoice, dataset: Dataset) -> list[str]:
        """Write `zoo.json`, or check that the zoo here is this one; return a line if it was damaged and written anew.

        Raises ZooError if there is a zoo of another pair, seed, network, code, recipe or dataset.
        """
        architecture = architecture_of(pair, config.network, dataset.image_shape, dataset.classes)
        described = architecture.describe()
        wanted = {
            "schema_version": definitions.schema_of(architecture),
            "pair": described["pair"],
            "seed": config.seed,
            "network": described["network"],
            "recipe": config.recipe.model_dump(mode="json"),
            "dataset": dataset.config.model_dump(mode="json"),
            "dataset_fingerprint": dataset.fingerprint,
            "image_shape": list(dataset.image_shape),
            "classes": dataset.classes,
            "code": hashes([*architecture.code, *code_of(("dataset", dataset.config.name))]),
        }
        versions = {"kt_ray": __version__, "torch": str(torch.__version__), "pyarrow": pa.__version__}
        wanted_file = {key: value for key, value in wanted.items() if key != "code" or value} | {"versions": versions}
        with self.files.lock() as check_lock:
            if not self.exists():
                self._write_definition(wanted_file)
                return []
            try:
                faults = self._mend_definition(check_lock, otherwise=wanted_file)
                present = self.definition()
            except OtherCode as error:
                raise self._other("code", error.code, wanted["code"]) from None
        present["recipe"] = recipe_of(present).model_dump(mode="json")  # a zoo may be older than a field of the recipe
        for key, value in wanted.items():
            if not definitions.same_entry(key, present.get(key), value):
                raise self._other(key, present.get(key), value)
        return faults

    def _other(self, key: str, present: Any, wanted: Any) -> ZooError:
        return ZooError(
            f"the zoo at {self.uri} has {key}={_short(present, wanted)}, but {_short(wanted, present)} was asked for; "
            "choose another zoo.name"
        )

    def copy_definition(self, other: ZooStore) -> None:
        """Make this an empty zoo like `other`."""
        self._write_definition(other.definition())

    def definition(self) -> dict[str, Any]:
        """Return the content of `zoo.json`. Raises ZooError if there is no zoo, Damaged if the file is not whole."""
        return self._definition()[0]

    def _definition(self) -> tuple[dict[str, Any], bool]:
        """Return the content of `zoo.json`, and whether it carries a checksum, as the index then does too."""
        path = self.files.path(DEFINITION)
        try:
            content = self.files.read(DEFINITION)
        except FileNotFoundError:
            count = len(self._shard_names())
            if count:
                raise Damaged(f"{path} is missing beside {count} shards", definitions.MENDS) from None
            raise ZooError(f"no zoo at {self.uri}; `kt-ray zoo build STUDY.yaml` makes one") from None
        return definitions.decode(content, path)

    def has_checksums(self) -> bool:
        """Return whether index and `zoo.json` must carry checksums; not if `zoo.json` is older, or cannot be read."""
        try:
            return self._definition()[1]
        except ZooError:
            return False

    def index(self) -> pa.Table:
        """Return a row for each member and snapshot; none if nothing was added yet. Raises Damaged."""
        path = self.files.path(INDEX)
        try:
            content = self.files.read(INDEX)
        except FileNotFoundError:
            if self._shard_names():
                raise Damaged(f"{path} is missing beside shards", indices.MENDS) from None
            return indices.EMPTY
        return indices.decode(content, path, checksum=self.has_checksums())

    def present(self) -> set[str]:
        """Return the ids of the members in the zoo."""
        return set(self.index()["id"].to_pylist())

    def missing(self, config: ZooConfig) -> list[Member]:
        """Return the members of `config` that the zoo has not."""
        present = self.present()
        return [member for member in members_of(config.seed, config.members) if member.id not in present]

    def prepare(self, config: ZooConfig, pair: str | PairChoice, dataset: Dataset) -> list[Member]:
        """Create the zoo if there is none, mend `zoo.json` and the index, return the members to be trained.

        Shards are not read, unless something is to be mended. Raises ZooError as `create` does.
        """
        faults = self.create(config, pair, dataset)
        try:
            return self.missing(config)
        except Damaged:
            faults += self.mend()
            return self.missing(config)
        finally:
            for fault in faults:
                logger.warning("%s", fault)

    def add(self, parameters: State, rows: pa.Table) -> None:
        """Add members as one shard: rows of `parameters` are described by `rows`. Ids already present are left out."""
        with self.files.lock() as check_lock:
            index = self.index()
            new = pc.invert(pc.is_in(rows["id"], value_set=index["id"].combine_chunks()))
            chosen = pc.indices_nonzero(new)
            if not len(chosen):
                return
            if len(chosen) < rows.num_rows:
                rows = rows.take(chosen)
                parameters = stacked.take(parameters, torch.from_numpy(chosen.to_numpy().astype("int64")))
            shard, content, rows = shards.pack(parameters, rows, self.definition())
            self.files.write(shard, content)
            check_lock()
            self._write_index(indices.joined([index, rows]))

    def discard(self, names: set[str]) -> None:
        """Take the rows of the shards `names` out of the index; a build trains their members again."""
        with self.files.lock() as check_lock:
            self._discard(names, check_lock)

    def mend(self) -> list[str]:
        """Bring the zoo back to what is whole; return a line for each damage.

        `zoo.json` and the index are made anew from the shards, which carry both and are named by their hash (`create`
        writes `zoo.json` if no shard carries it). Members of damaged or missing shards are taken out of the index, so
        that a build trains them again. A zoo from before there were checksums has them afterwards.
        """
        if not self.exists():
            return []
        with self.files.lock() as check_lock:
            self.files.sweep()
            faults = self._mend_definition(check_lock)
            try:
                self.index()
            except Damaged as error:
                faults.append(f"{error.what}; made anew from the shards")
                check_lock()
                self._write_index(self._index_of_shards())
            damaged = self._damaged(self.index())
            if damaged:
                self._discard(set(damaged), check_lock)
            if not self.has_checksums():
                check_lock()
                self._write_index(self.index())
                self._write_definition(self.definition())
        return faults + list(damaged.values())

    def read(self, split: Split | None = None) -> AnyZoo:
        """Return the zoo, or its `split`, in the order of ids and epochs. Raises ZooError if a file is damaged."""
        definition, index = self.definition(), self.index()
        if split is not None and index.num_rows:
            index = index.filter(pc.equal(index["split"], split))
        if index.num_rows == 0:
            raise ZooError(f"the zoo at {self.uri} has no members{f' in {split}' if split else ''}; build it first")
        order = pc.sort_indices(index, sort_keys=[("id", "ascending"), ("epoch", "ascending")])
        place = np.empty(len(order), np.int64)  # of each row of the index in the zoo
        place[order.to_numpy()] = np.arange(len(order))
        parameters: State = {}
        for stack, rows in self._checked(definition, index):
            if not parameters:  # filled shard by shard, so that a zoo costs its bytes and one shard more
                parameters = {name: value.new_empty(len(place), *value.shape[1:]) for name, value in stack.items()}
            goal = torch.from_numpy(place[rows])
            for name, value in stack.items():
                parameters[name][goal] = value
        return zoo_of(
            definitions.architecture_of(definition, self.uri),
            parameters,
            index.drop_columns(indices.PLACE).take(order),
            _fingerprint(definition, index),
            definition["dataset_fingerprint"],
        )

    def stream(self, split: Split | None = None) -> Iterator[AnyZoo]:
        """Yield the zoo shard by shard, each checked, in the order of the index; for zoos too large to hold twice."""
        definition, index = self.definition(), self.index()
        if split is not None and index.num_rows:
            index = index.filter(pc.equal(index["split"], split))
        architecture, fingerprint = definitions.architecture_of(definition, self.uri), _fingerprint(definition, index)
        for stack, rows in self._checked(definition, index):
            part = index.take(pa.array(rows)).drop_columns(indices.PLACE)
            yield zoo_of(architecture, stack, part, fingerprint, definition["dataset_fingerprint"])

    def _checked(self, definition: dict[str, Any], index: pa.Table) -> Iterator[tuple[State, indices.Rows]]:
        """Yield the tensors of each shard that `index` names, checked, and which rows of `index` they are."""
        shapes = shapes_of(definitions.architecture_of(definition, self.uri))
        for shard, digest, members, rows in indices.shards_of(index):
            content = self.files.read(
                shard, missing=f"{shard} is in the index of {self.uri}, but is missing; {_TRAINS}"
            )
            try:
                shards.check(content, digest, index.take(pa.array(members)), rows, shapes)
                stack = safetensors.torch.load(content)
            except (Damaged, safetensors.SafetensorError) as error:
                raise Damaged(f"{self.files.path(shard)} is damaged: {error}", _TRAINS) from None
            whole = len(rows) == stacked.size(stack) and bool((rows == np.arange(len(rows))).all())
            yield stack if whole else stacked.take(stack, torch.from_numpy(rows)), members

    def damaged(self) -> dict[str, str]:
        """Return the shards that are missing, cut off or altered, with what is wrong."""
        return self._damaged(self.index())

    def _damaged(self, index: pa.Table) -> dict[str, str]:
        faults = {}
        shapes = shapes_of(definitions.architecture_of(self.definition(), self.uri))
        for shard, digest, members, rows in indices.shards_of(index):
            try:
                shards.check(self.files.read(shard), digest, index.take(pa.array(members)), rows, shapes)
            except FileNotFoundError:
                faults[shard] = f"{self.files.path(shard)} is missing"
            except Damaged as error:
                faults[shard] = f"{self.files.path(shard)} is damaged: {error}"
        return faults

    def verify(self) -> list[str]:
        """Read and check every file that the zoo is made of; return a line for each damage."""
        faults: list[str] = []
        checks: tuple[Callable[[], object], ...] = (self.definition, self.index)
        for check in checks:
            try:
                check()
            except ZooError as error:
                faults.append(str(error))
        if not faults:
            return list(self.damaged().values())
        for name in self._shard_names():
            if shards.whole(name, self.files.read(name)) is None:
                faults.append(f"{self.files.path(name)} is damaged: its SHA-256 is not its name's")
        return faults

    def info(self) -> ZooInfo:
        """Return counts, bytes and accuracies; no shard is read. Raises ZooError if there is no zoo, or no shard."""
        definition, index = self.definition(), self.index()
        names = index["shard"].unique().to_pylist()
        missing = sorted(set(names) - set(self._shard_names()))
        if missing:
            raise Damaged(f"{self.files.path(missing[0])} is missing", _TRAINS)
        return describe(self.uri, definition, index, len(names), self.files.size(names))

    def _shard_names(self) -> list[str]:
        return [name for name in self.files.names() if indices.SHARD_NAME.fullmatch(name)]

    def _write_index(self, index: pa.Table) -> None:
        self.files.write(INDEX, indices.encode(index))

    def _write_definition(self, definition: dict[str, Any]) -> None:
        self.files.write(DEFINITION, definitions.encode(definition))

    def _discard(self, names: set[str], check_lock: Callable[[], None]) -> None:
        index = self.index()
        check_lock()
        self._write_index(indices.without(index, "shard", pa.array(sorted(names))))

    def _mend_definition(self, check_lock: Callable[[], None], otherwise: dict[str, Any] | None = None) -> list[str]:
        """Write a damaged `zoo.json` anew, from a whole shard or else as `otherwise`; return a line about it."""
        try:
            self.definition()
            return []
        except Damaged as error:
            found, origin = self._carried_definition(), "the shards"
            if found is None:
                found, origin = otherwise, "the study file"
            if found is None:
                raise
            check_lock()
            self._write_definition(found)
            return [f"{error.what}; made anew from {origin}"]

    def _carried_definition(self) -> dict[str, Any] | None:
        """Return the definition that whole shards carry. Raises ZooError if they carry several."""
        found: dict[str, dict[str, Any]] = {}
        for name in self._shard_names():
            header = shards.whole(name, self.files.read(name))
            if header is not None and header.definition is not None:
                key = json.dumps({**header.definition, "versions": None}, sort_keys=True)
                found.setdefault(key, header.definition)
        if len(found) > 1:
            raise ZooError(f"{self.uri} holds shards of {len(found)} different zoos; move those of one elsewhere")
        return next(iter(found.values()), None)

    def _index_of_shards(self) -> pa.Table:
        """Return the index that the shards' own rows make; shards that are not what their name says are left out."""
        index = indices.EMPTY
        for name in self._shard_names():
            rows = shards.rows_of(name, self.files.read(name))
            if rows is not None:
                index = indices.joined([index, indices.without(rows, "id", index["id"].combine_chunks())])
        return index


_TRAINS = "`kt-ray zoo build` trains its members again"


def zoo_name(name: str) -> str:
    """Return `name`. Raises ZooError if no zoo of a workspace can be called so: it becomes a directory's name."""
    if not ZOO_NAME.fullmatch(name):
        raise ZooError(f"{name!r} is no name of a zoo: letters, digits, '_', '.' and '-' are, the first no '.' or '-'")
    return name


def zoo_names(folder: Path) -> list[str]:
    """Return the names of the zoos in a workspace's folder of zoos, sorted; files beside them are none."""
    places = sorted(folder.iterdir()) if folder.is_dir() else []
    return [place.name for place in places if place.is_dir() and ZooStore(str(place)).exists()]


def _fingerprint(definition: dict[str, Any], index: pa.Table) -> str:
    """Return what trained the zoo and which members it has, 16 hexadecimal digits; not which shard holds which."""
    trained = {key: value for key, value in definition.items() if key != "versions"}
    rows = sorted(zip(index["id"].to_pylist(), index["epoch"].to_pylist(), strict=True))
    return hashlib.sha256(json.dumps([trained, rows], sort_keys=True).encode()).hexdigest()[:16]


def _short(value: Any, other: Any) -> str:
    """Return `value` for a message: of two mappings only what differs."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {key: entry for key, entry in value.items() if other.get(key) != entry}
    return json.dumps(value)
