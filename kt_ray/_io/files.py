"""Writing files so that no one ever reads half of one."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

FULL = ("disk is full", "No space left", "Disk quota exceeded")  # SQLite, the operating system
LEAST = 1 << 16  # bytes without which a database can write nothing


def is_full(reason: str, directory: Path | None = None) -> bool:
    """Return whether an error's `reason` is a full disk: by its words, or as `directory` has no space left.

    SQLite calls it a disk I/O error if its log finds no space.
    """
    if any(words in reason for words in FULL):
        return True
    try:
        return directory is not None and shutil.disk_usage(directory).free < LEAST
    except OSError:
        return False


def write_whole(path: Path, content: bytes) -> None:
    """`content` as the file at `path`, whole or not at all. Raises OSError if it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()
