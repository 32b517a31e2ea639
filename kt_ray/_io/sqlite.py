"""SQLite with a write-ahead log, if the filesystem supports one.

Asking for a trial and telling its end takes half the time that it takes with the default journal, for a commit then
waits for no disk (`synchronous=NORMAL`). What was committed outlives the death of its process in either mode, by
whatever signal. When the machine itself dies (power, kernel), the database stays whole, but the commits of the last
moments may be gone: a search then runs those trials again. The log's shared memory works on one machine only
(https://sqlite.org/wal.html), so a database on a network filesystem keeps SQLite's default journal.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

LOCAL = frozenset({"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"})
MOUNTS = Path("/proc/self/mountinfo")
PATIENCE = 60.0  # seconds that a connection waits for another's lock
SIDECARS = ("-journal", "-wal", "-shm")
LOGGED = b"\x02\x02"  # bytes 18 and 19 of a database with a write-ahead log (https://sqlite.org/fileformat.html)


def local(path: Path, mounts: Path = MOUNTS) -> bool:
    """Return whether `path` is on a filesystem of this machine alone; False for kinds not known to be one."""
    return _filesystem(path, mounts) in LOCAL


def prepare(path: Path) -> bool:
    """Give the database at `path`, made if missing, the journal that its filesystem supports.

    Returns whether it has a write-ahead log. A database that others are using keeps the journal it has.
    Raises sqlite3.Error where it cannot be opened or is none.
    """
    wanted = "wal" if local(path) else "delete"
    with closing(sqlite3.connect(path, timeout=PATIENCE)) as database:
        present = _journal(database, "")
        if present != wanted:
            database.execute("PRAGMA busy_timeout = 0")
            try:
                present = _journal(database, f" = {wanted}")
            except sqlite3.OperationalError:  # locked: others use it
                present = _journal(database, "")
        return present == "wal"


def make(
    path: Path, write: Callable[[Path], object], is_whole: Callable[[Path], bool], seconds: float = math.inf
) -> bool:
    """Let `write` make the database of `path` unless there is a whole one; return whether it did.

    It is made under another name beside `path` and then moved, under a lock, so that neither a kill nor a race nor a
    full disk leaves half a database. Raises what `write` raises, TimeoutError if another process has been at it for
    `seconds`.
    """
    if is_whole(path):
        return False
    with locked(path.parent, seconds):
        for left in path.parent.glob(f".{path.name}.making-*"):
            left.unlink(missing_ok=True)
        if is_whole(path):
            return False
        beside = path.with_name(f".{path.name}.making-{os.getpid()}")
        try:
            write(beside)
            for suffix in SIDECARS:
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            beside.replace(path)
        finally:
            for suffix in ("", *SIDECARS):
                with suppress(OSError):
                    beside.with_name(beside.name + suffix).unlink()
    return True


def reader(path: Path) -> Callable[[], sqlite3.Connection] | None:
    """Return a function that connects to the database at `path`, if its directory cannot be written; None if it can.

    SQLite reads a write-ahead log there only beside its shared memory, `PATH-shm`, which is there while a writer lives
    or after one died. Without a log, all is in the database, and no one writes to it.
    Raises sqlite3.OperationalError where commits are in a log that cannot be read, OSError where `path` cannot be.
    """
    if writable(path.parent):
        return None
    mode = "mode=ro"
    log, memory = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    with path.open("rb") as file:
        logged = file.read(20)[18:] == LOGGED
    if logged and not (log.exists() and memory.exists()):
        if log.exists() and log.stat().st_size:
            raise sqlite3.OperationalError(
                f"commits are in {log.name} alone, which can be read only where {path.parent} can be written; copy "
                "both files to a directory that can"
            )
        mode = "immutable=1"
    uri = f"{path.absolute().as_uri()}?{mode}"
    return partial(sqlite3.connect, uri, uri=True, timeout=PATIENCE, check_same_thread=False)


@contextmanager
def locked(directory: Path, seconds: float = math.inf) -> Iterator[None]:
    """Hold the lock on `directory` that one process of this machine can have; no file is left behind.

    A filesystem that cannot lock lets everybody in. Raises TimeoutError if another process holds it for `seconds`.
    """
    descriptor, deadline = os.open(directory, os.O_RDONLY), time.monotonic() + seconds
    try:
        while _held_by_another(descriptor):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{directory} was locked for {seconds:g} s")
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _held_by_another(descriptor: int) -> bool:
    """Return whether another process has the lock, which is taken if none has and the filesystem can lock."""
    with suppress(OSError):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def writable(directory: Path) -> bool:
    """Return whether files can be made in `directory`."""
    return os.access(directory, os.W_OK | os.X_OK)


def _journal(database: sqlite3.Connection, setting: str) -> str:
    return str(database.execute(f"PRAGMA journal_mode{setting}").fetchone()[0])


def _filesystem(path: Path, mounts: Path) -> str:
    """The type of the filesystem that holds `path`, empty if it cannot be told (proc_pid_mountinfo(5))."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    place = path.absolute().resolve()
    holders = {place, *place.parents}
    found = (Path("/"), "")
    for line in lines:
        mount, _, source = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda escape: chr(int(escape[1], 8)), mount.split()[4]))
        if point in holders and len(point.parts) >= len(
            found[0].parts
        ):  # of two at one point, the later hides the first
            found = (point, source.split()[0])
    return found[1]
