"""Files of a store in a directory or behind a `pyarrow.fs` URI, written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from kt_ray._io.text import first_line
from kt_ray.errors import ZooError

CLAIMS = ".claims"  # directory of the claims for the lock, if the store is no local directory
LEASE_SECONDS = 60.0  # after which the claim of a process that no longer renews it counts for nothing
WAIT_SECONDS = 900.0  # for another process to release the lock
Check = Callable[[], None]


class Files:
    """The files right under `uri`. Methods raise ZooError if the store cannot be reached or refuses."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        try:
            if "://" in uri:
                self.filesystem, self.root = fs.FileSystem.from_uri(self.uri)
            else:
                self.filesystem, self.root = fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
        except (pa.ArrowException, OSError, ValueError, RuntimeError) as error:
            raise ZooError(f"{uri} is no directory or pyarrow.fs URI ({first_line(error)})") from None
        self.local = isinstance(self.filesystem, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        """Return the full path of `name`, for messages and for the file system."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Return whether the file `name` is there."""
        return bool(self._infos([self.path(name)])[0].type == fs.FileType.File)

    def size(self, names: list[str]) -> int:
        """Return the bytes of those of `names` that are there."""
        infos = self._infos([self.path(name) for name in names]) if names else []
        return sum(info.size or 0 for info in infos)

    def names(self) -> list[str]:
        """Return the names of the files, sorted."""
        infos = self._infos(fs.FileSelector(self.root, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.is_file)

    def sweep(self) -> None:
        """Remove the temporary files of writers that were killed; call it under the lock."""
        for name in self.names():
            if name.startswith((".shard-", ".index", ".zoo.json")) and name.endswith(".tmp"):
                self._remove(self.path(name))

    def read(self, name: str, missing: str | None = None) -> bytes:
        """Return the content of `name`. Raises FileNotFoundError, or ZooError with the text `missing` if given."""
        path = self.path(name)
        try:
            with _reported(path, "read"), self.filesystem.open_input_file(path) as file:
                content: bytes = file.read()
                return content
        except FileNotFoundError:
            if missing is None:
                raise
            raise ZooError(missing) from None

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write `name` under a temporary name, flush it, then rename it."""
        path, temporary = self.path(name), self.path(f".{name}.{uuid.uuid4().hex[:8]}.tmp")
        with _reported(path, "written", missing=True):
            self.filesystem.create_dir(self.root, recursive=True)
            try:
                with self.filesystem.open_output_stream(temporary) as file:
                    file.write(content)
                if self.local:
                    _flush(temporary)
                self.filesystem.move(temporary, path)
            except BaseException:
                self._remove(temporary)
                raise

    @contextmanager
    def lock(self) -> Iterator[Check]:
        """Let one process at a time in. Yields a check for right before a write, which raises ZooError if it was lost.

        A local directory is locked by the kernel. In other stores, processes put claims under `.claims/` and renew
        them; that needs lists that name a file as soon as it is written, as S3's, Google's and Azure's do.
        """
        if not self.local:
            with self._claimed() as check:
                yield check
            return
        with _reported(self.root, "written", missing=True):
            os.makedirs(self.root, exist_ok=True)
            file = open(self.path(".lock"), "a")  # noqa: SIM115 - errors of the body are not errors of this file
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield lambda: None

    @contextmanager
    def _claimed(self) -> Iterator[Check]:
        """Hold the lock by a claim.

        A process that sees no other claim after it put its own holds the lock: of two that put claims, the later sees
        the other's, takes its own back and tries again after a while. Ages are differences of the store's times.
        """
        directory, name = self.path(CLAIMS), f"{uuid.uuid4().hex}"
        claim = f"{directory}/{name}"
        with _reported(claim, "written", missing=True):
            self.filesystem.create_dir(directory, recursive=True)
        began, pause = time.monotonic(), 0.05
        while True:
            self._put(claim)
            if not self._rivals(name):
                break
            self._remove(claim)
            if time.monotonic() - began > WAIT_SECONDS:
                raise ZooError(f"{self.uri} was being written by others for {WAIT_SECONDS:.0f} s; try again later")
            time.sleep(random.uniform(pause / 2, pause))
            pause = min(2 * pause, 2.0)
        released = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(claim, released), daemon=True)
        renewing.start()

        def check() -> None:
            if self._infos([claim])[0].type != fs.FileType.File:
                raise ZooError(f"{self.uri} was taken over by another process while this one stood still; run it again")

        try:
            yield check
        finally:
            released.set()
            renewing.join()
            self._remove(claim)

    def _rivals(self, name: str) -> list[str]:
        """Return the names of the others' claims. What nobody renewed for long is removed."""
        infos = self._infos(fs.FileSelector(self.path(CLAIMS), allow_not_found=True))
        claims = {info.base_name: info.mtime_ns or 0 for info in infos if info.is_file}
        if name not in claims:  # taken for stale by another: as if it had not been put
            return ["?"]
        now = claims.pop(name)
        stale = [other for other, renewed in claims.items() if now - renewed > 1e9 * LEASE_SECONDS]
        for other in stale:
            self._remove(self.path(f"{CLAIMS}/{other}"))
        return sorted(claims.keys() - set(stale))

    def _renew(self, claim: str, released: threading.Event) -> None:
        """Renew `claim` until it is `released` or was removed by another."""
        while not released.wait(LEASE_SECONDS / 6):
            with suppress(ZooError):  # of a store that is away for a while; the check before a write sees the rest
                if self._infos([claim])[0].type != fs.FileType.File:
                    return
                self._put(claim)

    def _put(self, path: str) -> None:
        with _reported(path, "written", missing=True), self.filesystem.open_output_stream(path) as file:
            file.write(b"held")

    def _infos(self, what: list[str] | fs.FileSelector) -> list[fs.FileInfo]:
        with _reported(self.root, "read"):
            infos: list[fs.FileInfo] = self.filesystem.get_file_info(what)
            return infos

    def _remove(self, path: str) -> None:
        with suppress(OSError, pa.ArrowException):
            self.filesystem.delete_file(path)


@contextmanager
def _reported(path: str, action: str, missing: bool = False) -> Iterator[None]:
    """Make every error of a store one ZooError. FileNotFoundError passes unless `missing`."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, FileNotFoundError) and not missing:
            raise
        code = error.errno if isinstance(error, OSError) else None
        hint = "free some space" if code in (errno.ENOSPC, errno.EDQUOT) else "check address, rights and space"
        reason = os.strerror(code) if code else first_line(error)
        raise ZooError(f"{path} cannot be {action} ({reason}); {hint}, then run it again") from None


def _flush(path: str) -> None:
    """Make the file at `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
