"""Files of a store in a directory or behind a `pyarrow.fs` URI, written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from kt_ray._io.text import first_line
from kt_ray.errors import ZooError


class Files:
    """The files right under `uri`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        try:
            if "://" in uri:
                self.filesystem, self.root = fs.FileSystem.from_uri(self.uri)
            else:
                self.filesystem, self.root = fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ZooError(f"{uri} is no directory or pyarrow.fs URI ({first_line(error)})") from None
        self.local = isinstance(self.filesystem, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        """Full path of `name` for messages and for the file system."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether the file `name` is there."""
        info = self.filesystem.get_file_info(self.path(name))
        return bool(info.type == fs.FileType.File)

    def size(self, names: list[str]) -> int:
        """Bytes of those of `names` that are there."""
        infos = self.filesystem.get_file_info([self.path(name) for name in names]) if names else []
        return sum(info.size or 0 for info in infos)

    def names(self) -> list[str]:
        """Names of the files, sorted."""
        selector = fs.FileSelector(self.root, allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector) if info.is_file)

    def sweep(self) -> None:
        """Remove what writers that were killed left beside its place; call it under the lock. Local files only."""
        for name in self.names() if self.local else []:
            if name.startswith((".shard-", ".index")) and name.endswith(".tmp"):
                self._remove(self.path(name))

    def read(self, name: str, missing: str | None = None) -> bytes:
        """The content of `name`. Raises FileNotFoundError, or ZooError with the text `missing` if given."""
        try:
            with self.filesystem.open_input_file(self.path(name)) as file:
                content: bytes = file.read()
                return content
        except FileNotFoundError:
            if missing is None:
                raise
            raise ZooError(missing) from None

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write `name` beside its place, flush it, then rename. Raises ZooError where there is no room or right."""
        temporary = self.path(f".{name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            self.filesystem.create_dir(self.root, recursive=True)
            try:
                with self.filesystem.open_output_stream(temporary) as file:
                    file.write(content)
                if self.local:
                    _flush(temporary)
                self.filesystem.move(temporary, self.path(name))
            except BaseException:
                self._remove(temporary)
                raise
        except OSError as error:
            hint = "free some space" if error.errno == errno.ENOSPC else "check rights and space"
            reason = os.strerror(error.errno) if error.errno else first_line(error)
            raise ZooError(f"{self.path(name)} cannot be written ({reason}); {hint}, then run it again") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process at a time is inside; for a local directory (others have no lock)."""
        if not self.local:
            yield
            return
        os.makedirs(self.root, exist_ok=True)
        with open(self.path(".lock"), "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _remove(self, path: str) -> None:
        try:
            self.filesystem.delete_file(path)
        except OSError:
            return


def _flush(path: str) -> None:
    """Make the file at `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
