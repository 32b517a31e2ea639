"""Configuration of datasets, networks and the zoo that is trained on them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from kt_ray.config.base import Frozen

DatasetName = Literal["mnist5k", "mnist", "fashion_mnist", "cifar10", "cifar100"]
PairName = Literal["basic_to_simple", "basic_to_biased", "basic_to_mlp", "basic_to_attention"]
Split = Literal["train", "selection", "test"]
SPLITS: tuple[Split, ...] = ("train", "selection", "test")


class DatasetConfig(Frozen):
    """Which images, and how many of the training images are kept apart for selection."""

    name: DatasetName = "mnist5k"
    selection_images: int = Field(500, ge=0, description="images split off the training set, by a fixed seed")
    train_images: PositiveInt | None = Field(None, description="use only so many training images; all if unset")


class NetworkConfig(Frozen):
    """Widths of the paper's network: stem → block → head."""

    channels: PositiveInt = Field(6, description="channels of the block's input and output")
    source_hidden: PositiveInt = Field(6, description="hidden units of the source block")
    target_hidden: PositiveInt = Field(3, description="hidden units of the target block")
    head_channels: PositiveInt = Field(12, description="channels of the head's 1×1 convolution")


class PhaseConfig(Frozen):
    """How one phase of a member (source or target) is trained."""

    epochs: PositiveInt = 10
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.01
    momentum: float = Field(0.9, ge=0, lt=1, description="for sgd")
    weight_decay: float = Field(0.0, ge=0)
    batch_size: PositiveInt = 128
    schedule: Literal["constant", "cosine", "one_cycle"] = "constant"


class RecipeConfig(Frozen):
    """How members are trained; the defaults are the paper's (10 + 10 epochs of SGD, random horizontal flip)."""

    source: PhaseConfig = PhaseConfig()
    target: PhaseConfig = PhaseConfig()
    horizontal_flip: bool = True
    snapshots: tuple[PositiveInt, ...] = Field(
        (), description="source epochs kept beside the last, as further source samples without a target"
    )

    @model_validator(mode="after")
    def _snapshots_before_the_end(self) -> RecipeConfig:
        late = [epoch for epoch in self.snapshots if epoch >= self.source.epochs]
        if late:
            raise ValueError(f"snapshots {late} must come before the last source epoch, {self.source.epochs}")
        return self


class MemberCounts(Frozen):
    """How many members each split of the zoo has."""

    train: PositiveInt = 64
    selection: PositiveInt = 8
    test: PositiveInt = 16


class ActorConfig(Frozen):
    """What one zoo actor takes, and how many members it trains at once."""

    count: PositiveInt | None = Field(None, description="as many as the cluster bears if unset")
    cpus: PositiveFloat = 1.0
    gpus: float = Field(0.0, ge=0)
    members_at_once: PositiveInt = 8
    resources: dict[str, PositiveFloat] = Field(default_factory=dict, description="custom Ray resources")
    label_selector: dict[str, str] = Field(default_factory=dict, description="labels a node must have")


class ZooConfig(Frozen):
    """A zoo: its members, the recipe that trains them, the actors that do it."""

    name: str = Field("zoo", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(0, ge=0)
    members: MemberCounts = MemberCounts()
    network: NetworkConfig = NetworkConfig()
    recipe: RecipeConfig = RecipeConfig()
    actors: ActorConfig = ActorConfig()
