"""The files sent with a job: the study file and the code of this kt_ray, with its bundled translator and zoo."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from kt_ray._io.scratch import scratch_directory

STUDY_FILE = "study.yaml"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


@contextmanager
def packed(study: str, *, code: bool = True) -> Iterator[Path]:
    """A directory that becomes the job's working directory: `study.yaml` with the text `study`, and, with `code`,
    the package kt_ray as it is imported here, from an installed version or a working tree.

    The cluster needs the dependencies alone; Python finds the package in the working directory first.
    """
    with scratch_directory("kt-ray-job-") as root:
        (root / STUDY_FILE).write_text(study, encoding="utf-8")
        if code:
            for name in ("kt_ray", "kt_ray.search_spaces"):  # a working tree keeps the second outside the first
                shutil.copytree(
                    _location(name), root / name.replace(".", "/"), ignore=LEFT_OUT, dirs_exist_ok=True, symlinks=False
                )
        yield root


def _location(package: str) -> Path:
    """The directory of an importable `package`."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package}")
    return Path(next(iter(spec.submodule_search_locations)))
