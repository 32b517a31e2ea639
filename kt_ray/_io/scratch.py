"""Temporary folders that name the process that made them: what dead ones left is swept by the next."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "kt-ray-"


def make_scratch(prefix: str = PREFIX, parent: Path | None = None) -> Path:
    """Return a new folder in `parent` (the system's temporary folder if None), which the next one may sweep."""
    sweep(prefix, parent)
    owner = f"{prefix}{_host()}-{os.getpid()}-"
    return Path(tempfile.mkdtemp(prefix=owner, dir=parent))


@contextmanager
def scratch_directory(prefix: str = PREFIX, parent: Path | None = None) -> Iterator[Path]:
    """Make such a folder for the length of a `with`."""
    directory = make_scratch(prefix, parent)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def sweep(prefix: str = PREFIX, parent: Path | None = None) -> None:
    """Remove the folders that processes of this host left that are dead; others' cannot be judged and stay."""
    name = re.compile(rf"{re.escape(prefix)}{re.escape(_host())}-(\d+)-\w+")
    with suppress(OSError):
        for folder in (parent or Path(tempfile.gettempdir())).glob(f"{prefix}*"):
            owner = name.fullmatch(folder.name)
            if owner and not folder.is_symlink() and not _alive(int(owner[1])):
                shutil.rmtree(folder, ignore_errors=True)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
