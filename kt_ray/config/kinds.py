"""The two kinds of study file: translation and distillation."""

from __future__ import annotations

from pathlib import Path

from kt_ray.config.base import read_yaml
from kt_ray.errors import ConfigError


def is_distillation(path: Path) -> bool:
    """Whether the file at `path` is one of `kt-ray distill`, which names a student. Raises ConfigError if no YAML."""
    return "student" in read_yaml(path)


def only_study(path: Path) -> None:
    """Raises ConfigError where the file at `path` is a distillation."""
    if is_distillation(path):
        raise ConfigError("a distillation, not a study; `kt-ray distill` runs it", str(path))
