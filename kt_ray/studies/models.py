"""Translators by name: files, bundled ones and those in a workspace's registry; an evaluation as files."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryFile

from kt_ray._io.bundled import PREFIX
from kt_ray.errors import ConfigError
from kt_ray.studies.workspace import Workspace
from kt_ray.tracking.registry import load_champion_path
from kt_ray.translation.bundled import TRANSLATORS
from kt_ray.translation.evaluation import Evaluation
from kt_ray.translation.figures import save_figures


def translator_file(model: str, root: Path | None) -> Path:
    """The translator at `model`: a file, `pretrained:NAME`, or a `models:/…` URI in the workspace's registry."""
    if model.startswith(PREFIX):
        return TRANSLATORS.path(model)
    if not model.startswith("models:/"):
        return Path(model)
    return load_champion_path(Workspace.existing(root).tracking_uri, model)


def make_output(directory: Path) -> None:
    """Make `directory` where it is missing. Raises ConfigError if no file can be written there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}; name another --output") from None


def write_evaluation(evaluation: Evaluation, directory: Path) -> list[Path]:
    """The evaluation as `evaluation.json`, `evaluation.md` and figures in `directory`; returns their paths."""
    content = {"json": json.dumps(evaluation.to_dict(), indent=1), "md": evaluation.to_markdown()}
    try:
        for suffix, text in content.items():
            (directory / f"evaluation.{suffix}").write_text(text, encoding="utf-8")
        return [directory / f"evaluation.{suffix}" for suffix in content] + save_figures(evaluation, directory)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}; name another --output") from None
