"""The bundled study files, by name."""

from __future__ import annotations

from pathlib import Path

from kt_ray.config import Source
from kt_ray.config.source import BUNDLED
from kt_ray.errors import ConfigError


def bundled() -> dict[str, Path]:
    """Return names and paths of the bundled study files."""
    return {path.stem: path for path in sorted(BUNDLED.glob("*.yaml"))}


def locate(name: str) -> Path:
    """Return the study file `name`: a path if there is one, else a bundled one, with or without `.yaml`.

    Raises ConfigError naming the bundled ones if there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    files = bundled()
    if path.parent == Path() and path.stem in files and path.suffix in ("", ".yaml"):
        return files[path.stem]
    raise ConfigError(f"no study file {name!r} here, and none of that name is bundled; there are: {', '.join(files)}")


def description(path: Path) -> str:
    """The first line of the `description` in the study file at `path`."""
    return (str(Source(path).content.get("description", "")).strip().splitlines() or [""])[0]


def copy(name: str, destination: Path) -> Path:
    """Copy the study file `name` to `destination` (a directory or a file that does not exist yet)."""
    source = locate(name)
    target = destination / source.name if destination.is_dir() else destination
    if target.exists():
        raise ConfigError(f"{target} exists already; name another file, or remove it first")
    if not target.parent.is_dir():
        raise ConfigError(f"no such directory: {target.parent}; make it first")
    target.write_bytes(source.read_bytes())
    return target
