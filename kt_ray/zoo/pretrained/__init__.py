"""Zoos that ship with the package, each a directory of small shards with a card beside it; nothing is written there."""

from __future__ import annotations

from pathlib import Path

from kt_ray.errors import ZooError
from kt_ray.zoo.store import DEFINITION

PREFIX = "pretrained:"
DIRECTORY = Path(__file__).parent


def pretrained_names() -> list[str]:
    """What ships, by name."""
    return sorted(path.parent.name for path in DIRECTORY.glob(f"*/{DEFINITION}"))


def pretrained_path(zoo: str) -> Path:
    """The directory of the zoo `zoo`, written `pretrained:NAME`. Raises ZooError if none ships so named."""
    name = zoo.removeprefix(PREFIX)
    if name not in pretrained_names():
        raise ZooError(f"no zoo {name!r} ships with kt_ray; there are: {', '.join(pretrained_names()) or 'none'}")
    return DIRECTORY / name
