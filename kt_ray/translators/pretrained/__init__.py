"""Translators that ship with the package, each a safetensors file with a model card beside it."""

from __future__ import annotations

from pathlib import Path

from kt_ray.errors import CheckpointError

PREFIX = "pretrained:"
DIRECTORY = Path(__file__).parent


def pretrained_names() -> list[str]:
    """What ships, by name."""
    return sorted(path.stem for path in DIRECTORY.glob("*.safetensors"))


def pretrained_path(model: str) -> Path:
    """The file of the translator `model`, written `pretrained:NAME`. Raises CheckpointError if none ships so named."""
    name = model.removeprefix(PREFIX)
    if name not in pretrained_names():
        raise CheckpointError(
            f"no translator {name!r} ships with kt_ray; there are: {', '.join(pretrained_names()) or 'none'}"
        )
    return DIRECTORY / f"{name}.safetensors"
