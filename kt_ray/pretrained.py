"""What ships with the package, written `pretrained:NAME` where a path may stand: translators and zoos.

Each has a card `NAME.md` beside it. Nothing is ever written there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kt_ray.errors import CheckpointError, KTError, ZooError

PREFIX = "pretrained:"
PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Shipped:
    """All of one kind that ships: a file or a directory `NAME` + `suffix` each, in `directory`."""

    kind: str
    directory: Path
    suffix: str
    error: type[KTError]

    @property
    def names(self) -> list[str]:
        """What ships, by name."""
        return sorted(card.stem for card in self.directory.glob("*.md"))

    def path(self, name: str) -> Path:
        """Where `name` lies, with or without its `pretrained:`. Raises `error` if none ships so named."""
        name = name.removeprefix(PREFIX)
        if name not in self.names:
            known = ", ".join(self.names) or "none"
            raise self.error(f"no {self.kind} {name!r} ships with kt_ray; there are: {known}")
        return self.directory / f"{name}{self.suffix}"


TRANSLATORS = Shipped("translator", PACKAGE / "translators" / "pretrained", ".safetensors", CheckpointError)
ZOOS = Shipped("zoo", PACKAGE / "zoo" / "pretrained", "", ZooError)
