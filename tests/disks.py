"""Small disks for tests, as only a mounted filesystem is one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(path: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a tmpfs of so many kB at `path`; skip the test if this user may not."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs more rights than these")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=False)


def enlarge(path: Path, kilobytes: int) -> None:
    """Give the disk at `path` so many kB."""
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(path)], check=True)
