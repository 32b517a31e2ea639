"""Configuration of datasets, networks and the zoo that is trained on them."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from kt_ray.config.base import Frozen, Resources, check_registered
from kt_ray.config.network import AnyNetwork, NetworkConfig

DatasetName = Literal["mnist5k", "mnist", "fashion_mnist", "cifar10", "cifar100"]
Split = Literal["train", "selection", "test"]
SPLITS: tuple[Split, ...] = ("train", "selection", "test")

FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # of a study or zoo, whose folder has it
FILE_NAME_SAYS = "letters, digits, `_`, `.`, `-`; a letter or digit first"
TORCHVISION = "torchvision:"  # before the name of one of torchvision's datasets


class FolderOptions(Frozen):
    """Images in directories of classes: `PATH/train/CLASS/…` and `PATH/test/CLASS/…`, or `PATH/CLASS/…`."""

    path: str = Field(min_length=1)
    channels: Literal[1, 3] | None = Field(None, description="images are made grey or RGB; as stored if unset")
    test_share: float = Field(0.2, gt=0, lt=1, description="of each class, if there are no train and test directories")


class NpzOptions(Frozen):
    """One file with the arrays `train_images`, `train_labels`, `test_images`, `test_labels`."""

    path: str = Field(min_length=1)


DATASET_OPTIONS: dict[str, type[Frozen]] = {"folder": FolderOptions, "npz": NpzOptions}


class DatasetConfig(Frozen):
    """Which images, and how many of the training images are kept apart for selection."""

    name: str = Field("mnist5k", description="a published dataset, folder, npz, torchvision:NAME, or a registered one")
    options: dict[str, Any] = Field(default_factory=dict, description="of a dataset that takes any")
    selection_images: int = Field(500, ge=0, description="images split off the training set, by a fixed seed")
    train_images: PositiveInt | None = Field(None, description="use only so many training images; all if unset")

    @model_validator(mode="after")
    def _known_dataset(self) -> DatasetConfig:
        if self.name in get_args(DatasetName) or self.name.startswith(TORCHVISION):
            if self.options:
                raise ValueError(f"{self.name} takes no options, got {', '.join(self.options)}")
        elif self.name in DATASET_OPTIONS:
            DATASET_OPTIONS[self.name].model_validate(self.options)
        else:
            check_registered("dataset", self.name, self.options, *get_args(DatasetName), f"{TORCHVISION}NAME")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_options(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if not self.options:  # as studies and zoos from before there were options have it
            del content["options"]
        return content

    def __hash__(self) -> int:
        return hash((self.name, json.dumps(self.options, sort_keys=True), self.selection_images, self.train_images))


Range = tuple[PositiveFloat, PositiveFloat]


def _in_order(value: Any, name: str) -> None:
    if isinstance(value, tuple) and value[0] > value[1]:
        raise ValueError(f"{name}: low must not be above high, got {list(value)}")


class PhaseConfig(Frozen):
    """How one phase of a member (source or target) is trained.

    `[low, high]` in place of a number is drawn for each member from its seed; the index of the zoo says what was drawn.
    """

    epochs: PositiveInt | tuple[PositiveInt, PositiveInt] = 10
    steps: PositiveInt | None = Field(None, description="end after so many steps, if that comes before the last epoch")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: PositiveFloat | Range = Field(0.01, description="a range is drawn from log-uniformly")
    momentum: float = Field(0.9, ge=0, lt=1, description="for sgd")
    weight_decay: NonNegativeFloat | Range = Field(0.0, description="a range is drawn from log-uniformly")
    batch_size: int = Field(128, ge=2)
    schedule: Literal["constant", "cosine", "one_cycle"] = "constant"

    @model_validator(mode="after")
    def _ranges_in_order(self) -> PhaseConfig:
        for name in ("epochs", "learning_rate", "weight_decay"):
            _in_order(getattr(self, name), name)
        return self

    @property
    def fewest_epochs(self) -> int:
        """Epochs of the member that draws the fewest."""
        return self.epochs[0] if isinstance(self.epochs, tuple) else self.epochs


_FAST = {"epochs": 3, "optimizer": "adamw", "learning_rate": 0.01, "batch_size": 64, "schedule": "one_cycle"}
RECIPES: dict[str, dict[str, Any]] = {"paper": {}, "fast": {"source": _FAST, "target": _FAST}}


class RecipeConfig(Frozen):
    """How members are trained; the defaults are the paper's (10 + 10 epochs of SGD, random horizontal flip).

    `recipe: fast` in a study file names a preset; `recipe: {preset: fast, snapshots: [1, 2]}` changes one.
    """

    source: PhaseConfig = PhaseConfig()
    target: PhaseConfig = PhaseConfig()
    brief: PhaseConfig = Field(
        PhaseConfig(epochs=1), description="of members.brief: training members with a source alone"
    )
    horizontal_flip: bool = True
    shift: NonNegativeInt | tuple[NonNegativeInt, NonNegativeInt] = Field(
        0, description="images moved by up to so many pixels, both ways; [low, high] is drawn for each member"
    )
    initial_scale: PositiveFloat | Range = Field(
        1.0, description="factor of the initial weights of convolutions; [low, high] is drawn for each member"
    )
    snapshots: tuple[PositiveInt, ...] = Field(
        (), description="source epochs kept beside the last, as further source samples without a target"
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        given = {"preset": value} if isinstance(value, str) else value
        if not isinstance(given, dict) or "preset" not in given:
            return value
        given = dict(given)
        name = given.pop("preset")
        if name not in RECIPES:
            raise ValueError(f"no recipe is called {name!r}; there are {', '.join(sorted(RECIPES))}")
        chosen: dict[str, Any] = dict(RECIPES[name])
        for key, entry in given.items():
            preset = chosen.get(key)
            chosen[key] = preset | entry if isinstance(preset, dict) and isinstance(entry, dict) else entry
        return chosen

    @model_validator(mode="after")
    def _snapshots_before_the_end(self) -> RecipeConfig:
        _in_order(self.shift, "shift")
        _in_order(self.initial_scale, "initial_scale")
        late = [epoch for epoch in self.snapshots if epoch >= self.source.fewest_epochs]
        if late:
            raise ValueError(f"snapshots {late} must come before the last source epoch, {self.source.fewest_epochs}")
        return self


class MemberCounts(Frozen):
    """How many members each split of the zoo has."""

    train: PositiveInt = 64
    selection: PositiveInt = 8
    test: PositiveInt = 16
    brief: NonNegativeInt = Field(0, description="further training members with a briefly trained source, no target")


class ActorConfig(Resources):
    """What one zoo actor takes, and how many members it trains at once."""

    count: PositiveInt | None = Field(None, description="as many as fit the cluster if unset")
    members_at_once: PositiveInt | None = Field(None, description="as many as a GPU holds, 8 on a CPU, if unset")


class ZooConfig(Frozen):
    """A zoo: its members, the recipe that trains them, the actors that do it."""

    name: str = Field("zoo", pattern=FILE_NAME, max_length=100, description=FILE_NAME_SAYS)
    seed: int = Field(0, ge=0)
    members: MemberCounts = MemberCounts()
    network: AnyNetwork = Field(
        NetworkConfig(), description="the paper's, by its widths; or the name of a registered one, with its options"
    )
    recipe: RecipeConfig = RecipeConfig()
    actors: ActorConfig = ActorConfig()
