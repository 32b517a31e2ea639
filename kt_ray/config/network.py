"""Which network a study is about, and which block of it is translated into which."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from kt_ray.config.base import UNSEEN, Frozen

PairName = Literal["basic_to_simple", "basic_to_biased", "basic_to_mlp", "basic_to_attention"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.:-]*$"


class NetworkConfig(Frozen):
    """Widths of the paper's network: stem → block → head."""

    channels: PositiveInt = Field(6, description="channels of the block's input and output")
    source_hidden: PositiveInt = Field(6, description="hidden units of the source block")
    target_hidden: PositiveInt = Field(3, description="hidden units of the target block")
    head_channels: PositiveInt = Field(12, description="channels of the head's 1×1 convolution")


class _Named(Frozen):
    """Something registered, by its name alone or with its options."""

    name: str = Field(pattern=NAME, max_length=100)
    options: dict[str, Any] = Field(default_factory=dict, description="as its own model says")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _shortest(self, handler: SerializerFunctionWrapHandler) -> str | dict[str, Any]:
        """As files from before there were options have it, where there are none."""
        content: dict[str, Any] = handler(self)
        given = {key: value for key, value in content.items() if key == "name" or value}
        return self.name if len(given) == 1 else given

    def __hash__(self) -> int:
        return hash(json.dumps(self.model_dump(mode="json"), sort_keys=True))

    def __str__(self) -> str:
        return self.name


class NetworkChoice(_Named):
    """A registered network, in a study file `network: {name: resnet, options: {depth: 20}}`."""


class PairChoice(_Named):
    """A registered block pair, in a study file `pair: {name: halved, options: {share: 0.5}, site: layer1.0}`."""

    site: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="module path of the block; unset: all sites that the pair's options choose",
    )


def _kind(value: Any) -> str:
    named = isinstance(value, str | NetworkChoice) or (isinstance(value, dict) and "name" in value)
    return f"{UNSEEN}named" if named else f"{UNSEEN}widths"


AnyNetwork = Annotated[
    Annotated[NetworkConfig, Tag(f"{UNSEEN}widths")] | Annotated[NetworkChoice, Tag(f"{UNSEEN}named")],
    Discriminator(_kind),
]
