"""The files of a zoo: `zoo.json`, the Parquet index and safetensors shards, each checked whenever it is read.

A shard belongs to the zoo once the index names it. Files are written beside their place and then renamed; shards are
named by their SHA-256, index and `zoo.json` carry theirs. Nothing is pickled. What is damaged is found and mended here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors
import safetensors.torch
import torch

from kt_ray._io.checksum import json_with_checksum
from kt_ray.errors import ZooError
from kt_ray.networks import State, stacked
from kt_ray.zoo import definition as definitions
from kt_ray.zoo import index as indices
from kt_ray.zoo import shards
from kt_ray.zoo.definition import Damaged, shapes_of
from kt_ray.zoo.filesystem import Files

DEFINITION = "zoo.json"
INDEX = "index.parquet"
TRAINS = "`kt-ray zoo build` trains its members again"


class ZooContents:
    """The files at `uri`: a directory or a `pyarrow.fs` URI such as `s3://bucket/zoos/digits`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.files = Files(uri)

    def exists(self) -> bool:
        """Return whether there is a zoo here, whole or damaged."""
        return self.files.exists(DEFINITION) or bool(self._shard_names())

    def definition(self) -> dict[str, Any]:
        """Return the content of `zoo.json`. Raises ZooError if there is no zoo, Damaged if the file is not whole."""
        return self._definition()[0]

    def has_checksums(self) -> bool:
        """Return whether index and `zoo.json` must carry checksums; not if `zoo.json` is older, or cannot be read."""
        try:
            return self._definition()[1]
        except ZooError:
            return False

    def index(self) -> pa.Table:
        """Return a row for each member and snapshot; none if nothing was added yet. Raises Damaged."""
        return self._index(self.has_checksums())

    def present(self) -> set[str]:
        """Return the ids of the members in the zoo."""
        return set(self.index()["id"].to_pylist())

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
            return list(self._damaged(*self._described()).values())
        for name in self._shard_names():
            if shards.whole(name, self.files.read(name)) is None:
                faults.append(f"{self.files.path(name)} is damaged: its SHA-256 is not its name's")
        return faults

    def mend(self) -> list[str]:
        """Bring the zoo back to what is whole; return a line for each damage.

        `zoo.json` and the index are made anew from the shards, which carry both and are named by their hash. Members of
        damaged or missing shards are taken out of the index, so that a build trains them again. A zoo from before there
        were checksums has them afterwards.
        """
        if not self.exists():
            return []
        with self.files.lock() as check_lock:
            self.files.sweep()
            faults = self._mend_definition(check_lock)
            definition, checksums = self._definition()
            whole = checksums
            try:
                index = self._index(checksums)
            except Damaged as error:
                faults.append(f"{error.what}; made anew from the shards")
                index, whole = self._index_of_shards(), False
            damaged = self._damaged(definition, index)
            if damaged or not whole:
                check_lock()
                self._write_index(indices.without(index, "shard", pa.array(sorted(damaged), pa.string())))
            if not checksums:
                self._write_definition(definition)
        return faults + list(damaged.values())

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

    def _index(self, checksum: bool) -> pa.Table:
        path = self.files.path(INDEX)
        try:
            content = self.files.read(INDEX)
        except FileNotFoundError:
            if self._shard_names():
                raise Damaged(f"{path} is missing beside shards", indices.MENDS) from None
            return indices.EMPTY
        return indices.decode(content, path, checksum=checksum)

    def _described(self) -> tuple[dict[str, Any], pa.Table]:
        """Return `zoo.json` and the index, each read once."""
        definition, checksums = self._definition()
        return definition, self._index(checksums)

    def _checked(self, definition: dict[str, Any], index: pa.Table) -> Iterator[tuple[State, indices.Rows]]:
        """Yield the tensors of each shard that `index` names, checked, and which rows of `index` they are."""
        shapes = shapes_of(definitions.architecture_of(definition, self.uri))
        for shard, digest, members, rows in indices.shards_of(index):
            content = self.files.read(shard, missing=f"{shard} is in the index of {self.uri}, but is missing; {TRAINS}")
            try:
                shards.check(content, digest, index.take(pa.array(members)), rows, shapes)
                stack = stacked.by_name(safetensors.torch.load(content))
            except (Damaged, safetensors.SafetensorError) as error:
                raise Damaged(f"{self.files.path(shard)} is damaged: {error}", TRAINS) from None
            whole = len(rows) == stacked.size(stack) and bool((rows == np.arange(len(rows))).all())
            yield stack if whole else stacked.take(stack, torch.from_numpy(rows)), members

    def _damaged(self, definition: dict[str, Any], index: pa.Table) -> dict[str, str]:
        """Return the shards that are missing, cut off or altered, with what is wrong."""
        faults = {}
        shapes = shapes_of(definitions.architecture_of(definition, self.uri))
        for shard, digest, members, rows in indices.shards_of(index):
            try:
                shards.check(self.files.read(shard), digest, index.take(pa.array(members)), rows, shapes)
            except FileNotFoundError:
                faults[shard] = f"{self.files.path(shard)} is missing"
            except Damaged as error:
                faults[shard] = f"{self.files.path(shard)} is damaged: {error}"
        return faults

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

    def _shard_names(self) -> list[str]:
        return [name for name in self.files.names() if indices.SHARD_NAME.fullmatch(name)]

    def _write_index(self, index: pa.Table) -> None:
        self.files.write(INDEX, indices.encode(index))

    def _write_definition(self, definition: dict[str, Any]) -> None:
        self.files.write(DEFINITION, json_with_checksum(definition))
