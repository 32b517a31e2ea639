"""A zoo on disk or in object storage: made, added to, completed, read."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from kt_ray import __version__
from kt_ray._io.checksum import json_digest
from kt_ray._io.display import Displayed
from kt_ray.config import PairChoice, Split, ZooConfig
from kt_ray.config.code import hashes
from kt_ray.config.study_code import code_of
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
from kt_ray.networks import State, architecture_of, stacked
from kt_ray.zoo import definition as definitions
from kt_ray.zoo import index as indices
from kt_ray.zoo import shards
from kt_ray.zoo.contents import TRAINS, ZooContents
from kt_ray.zoo.definition import Damaged, OtherCode, recipe_of
from kt_ray.zoo.info import ZooInfo, describe
from kt_ray.zoo.members import AnyZoo, Member, members_of, zoo_of

logger = logging.getLogger(__name__)

ZOO_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class ZooStore(ZooContents, Displayed):
    """The zoo at `uri`: a directory or a `pyarrow.fs` URI such as `s3://bucket/zoos/digits`."""

    def display_title(self) -> str:
        return f"zoo at {self.uri}"

    def display_rows(self) -> list[dict[str, str]]:
        """Return what is in the zoo; no rows if none was created."""
        return [row for row in self.info().facts() if row[""] != "uri"] if self.exists() else []

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
            self.files.sweep()
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

    def copy_definition(self, other: ZooStore) -> None:
        """Make this an empty zoo like `other`."""
        self._write_definition(other.definition())

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
            definition, index = self._described()
            chosen = pc.indices_nonzero(pc.invert(pc.is_in(rows["id"], value_set=index["id"].combine_chunks())))
            if not len(chosen):
                return
            if len(chosen) < rows.num_rows:
                rows = rows.take(chosen)
                parameters = stacked.take(parameters, torch.from_numpy(chosen.to_numpy().astype("int64")))
            shard, content, rows = shards.pack(parameters, rows, definition)
            self.files.write(shard, content)
            check_lock()
            self._write_index(indices.joined([index, rows]))

    def complete(
        self, config: ZooConfig, pair: str | PairChoice, dataset: Dataset, train: Callable[[list[Member]], None]
    ) -> AnyZoo:
        """Create the zoo if there is none, let `train` add the members that are missing, and return the whole zoo.

        Each file is read once, at the end. If it is damaged, that is mended, and what it held is trained again.
        Raises ZooError as `create` does.
        """
        missing = self.prepare(config, pair, dataset)
        if not self.has_checksums():  # of an earlier release, which has them from here on
            missing = self._mended(config)
        if missing:
            train(missing)
        try:
            return self.read()
        except Damaged as error:
            logger.warning("%s", error)
        if missing := self._mended(config):
            train(missing)
        return self.read()

    def _mended(self, config: ZooConfig) -> list[Member]:
        """Mend the zoo; return the members that it is missing then."""
        for fault in self.mend():
            logger.warning("%s; its members are trained again", fault)
        return self.missing(config)

    def read(self, split: Split | None = None) -> AnyZoo:
        """Return the zoo, or its `split`, in the order of ids and epochs. Raises ZooError if a file is damaged."""
        definition, index = self._described()
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

    def stream(self) -> Iterator[AnyZoo]:
        """Yield the zoo shard by shard, each checked, in the order of the index; for zoos too large to hold twice."""
        definition, index = self._described()
        architecture, fingerprint = definitions.architecture_of(definition, self.uri), _fingerprint(definition, index)
        for stack, rows in self._checked(definition, index):
            part = index.take(pa.array(rows)).drop_columns(indices.PLACE)
            yield zoo_of(architecture, stack, part, fingerprint, definition["dataset_fingerprint"])

    def info(self) -> ZooInfo:
        """Return counts, bytes and accuracies; no shard is read. Raises ZooError if there is no zoo, or no shard."""
        definition, index = self._described()
        names = index["shard"].unique().to_pylist()
        missing = sorted(set(names) - set(self._shard_names()))
        if missing:
            raise Damaged(f"{self.files.path(missing[0])} is missing", TRAINS)
        return describe(self.uri, definition, index, len(names), self.files.size(names))

    def _other(self, key: str, present: Any, wanted: Any) -> ZooError:
        return ZooError(
            f"the zoo at {self.uri} has {key}={_short(present, wanted)}, but {_short(wanted, present)} was asked for; "
            "choose another zoo.name"
        )


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
    return json_digest([trained, rows])[:16]


def _short(value: Any, other: Any) -> str:
    """Return `value` for a message: of two mappings only what differs."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {key: entry for key, entry in value.items() if other.get(key) != entry}
    return json.dumps(value)
