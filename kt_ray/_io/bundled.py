"""Trained translators and zoos bundled with the package, written `pretrained:NAME` wherever a path is accepted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kt_ray.errors import KTError

PREFIX = "pretrained:"


@dataclass(frozen=True)
class Bundled:
    """The bundled artefacts of one kind: file or directory `NAME` + `suffix`, card `NAME.md` beside it."""

    kind: str
    directory: Path
    suffix: str
    error: type[KTError]

    @property
    def names(self) -> list[str]:
        """The names of the bundled artefacts."""
        return sorted(card.stem for card in self.directory.glob("*.md"))

    def path(self, name: str) -> Path:
        """Return the path of the artefact `name` (with or without `pretrained:`). Raises `error` if it is unknown."""
        name = name.removeprefix(PREFIX)
        if name not in self.names:
            known = ", ".join(self.names) or "none"
            raise self.error(f"no {self.kind} {name!r} is bundled with kt_ray; there are: {known}")
        return self.directory / f"{name}{self.suffix}"
