"""`zoo.json`: what a zoo is of. It carries its own SHA-256; zoos written before it did are read as well."""

from __future__ import annotations

import json
from typing import Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from kt_ray._io.checksum import KEY, checksum_holds
from kt_ray._io.text import first_line
from kt_ray.config import DatasetConfig, PairChoice, RecipeConfig
from kt_ray.config.base import Frozen
from kt_ray.config.network import AnyNetwork
from kt_ray.config.study_code import asked_for, missing_code
from kt_ray.errors import ConfigError, ZooError
from kt_ray.networks import AnyArchitecture, PaperArchitecture, described, stacked
from kt_ray.registry import cached

SCHEMA_VERSION = 2  # 1: of the paper's networks, which are still written so
MENDS = "`kt-ray zoo build FILE` with the zoo's study file makes it anew"
Shapes = dict[str, tuple[int, ...]]


class Damaged(ZooError):
    """A file of a zoo is missing or is not what was written: `what` is wrong, and what mends it."""

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        super().__init__(f"{what}; {remedy}" if remedy else what)


class OtherCode(ZooError):
    """A zoo is of code, SHA-256 by file, that has not run in this process."""

    def __init__(self, path: str, code: dict[str, str]) -> None:
        self.code = code
        (name, sha256), *_ = missing_code(code).items()
        super().__init__(f"the zoo at {path} needs {asked_for(name, sha256)}")


class _Definition(Frozen):
    """The entries of `zoo.json`; `versions` is only for people."""

    schema_version: int
    pair: PairChoice
    seed: NonNegativeInt
    network: AnyNetwork
    recipe: RecipeConfig
    dataset: DatasetConfig
    dataset_fingerprint: str
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    classes: PositiveInt
    code: dict[str, str] = Field(default_factory=dict)  # SHA-256 of each file that registered network, pair or dataset
    versions: dict[str, str] = Field(default_factory=dict)


def decode(content: bytes, path: str) -> tuple[dict[str, Any], bool]:
    """Return the definition in `content`, read from `path`, and whether it carries a SHA-256.

    Raises Damaged if it is not what was written or describes no zoo, OtherCode if it is of code that has not run here,
    ZooError if another version wrote it.
    """
    if checksum_holds(content) is False:
        raise Damaged(f"{path} is damaged: its SHA-256 is not the one that it carries", MENDS)
    try:
        definition = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({first_line(error)})", MENDS) from None
    if not isinstance(definition, dict):
        raise Damaged(f"{path} holds a {type(definition).__name__}, expected a mapping", MENDS)
    carried = definition.pop(KEY, None) is not None
    version = definition.get("schema_version")
    if version not in (1, SCHEMA_VERSION):
        raise ZooError(
            f"{path} has schema version {version}, expected 1 or {SCHEMA_VERSION}; "
            "use the kt_ray version that built it, or build again under another name"
        )
    try:
        named = definition.get("code", {})
        if missing_code(named):
            raise OtherCode(path, named)
        _Definition.model_validate(definition)
        shapes_of(architecture_of(definition, path))
    except (ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:  # sizes may be too large
        raise Damaged(f"{path} does not describe a zoo ({first_line(error)})", MENDS) from None
    return definition, carried


def schema_of(architecture: AnyArchitecture) -> int:
    """Return the schema version of a zoo of such networks."""
    return 1 if isinstance(architecture, PaperArchitecture) else SCHEMA_VERSION


def architecture_of(definition: dict[str, Any], path: str = "it") -> AnyArchitecture:
    """Return the architecture that `zoo.json`, read from `path`, describes.

    Raises ZooError if what it names is not registered here.
    """
    try:
        return described(definition)
    except ConfigError as error:  # of networks that somebody registered
        raise ZooError(f"the zoo at {path} is of a network that is not known here: {error}") from None


def recipe_of(definition: dict[str, Any]) -> RecipeConfig:
    """Return the recipe that `zoo.json` describes."""
    return RecipeConfig.model_validate(definition["recipe"])


def same_entry(key: str, value: Any, other: Any) -> bool:
    """Return whether two values of the entry `key` describe the same zoo.

    Where images are stored (`dataset.options`) does not matter: the fingerprint says which they are.
    """
    if key == "code":  # left out if there is none
        value, other = value or {}, other or {}
    if key == "dataset" and isinstance(value, dict) and isinstance(other, dict):
        value, other = value | {"options": None}, other | {"options": None}
    return bool(value == other)


@cached(16)
def shapes_of(architecture: AnyArchitecture) -> Shapes:
    """Return the shape of each tensor of one member, by its name in a shard. Nothing is allocated."""
    with torch.device("meta"):
        parts = architecture.parts()
    states = stacked.join(**{name: part.state_dict() for name, part in parts.items()})
    return {name: tuple(value.shape) for name, value in states.items() if "num_batches_tracked" not in name}
