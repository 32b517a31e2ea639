"""Provenance of runs: the tags that every run carries."""

from __future__ import annotations

import getpass
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("kt_ray", "torch", "ray", "optuna", "mlflow")


@cache
def provenance() -> dict[str, str]:
    """User, git commit where the package runs from a repository, versions of Python and of the main packages."""
    tags = {
        "mlflow.source.name": "kt-ray",
        "mlflow.source.type": "LOCAL",
        "version.python": platform.python_version(),
    }
    with suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    for package in PACKAGES:
        try:
            tags[f"version.{package}"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def _git(*arguments: str) -> str:
    """Return what git prints about the repository of this package; nothing if it is installed as a wheel."""
    package = Path(__file__).resolve().parents[1]
    try:
        if not (package.parent / ".git").exists():
            return ""
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
