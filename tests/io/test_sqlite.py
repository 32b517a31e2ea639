"""The journal that a database gets, by its filesystem, and how it is read where nothing can be written."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kt_ray._io import sqlite

MOUNTS = r"""
21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 21 0:40 / /home rw shared:5 - nfs4 server:/home rw,vers=4.2
31 30 8:2 / /home/me/local\040disk rw - xfs /dev/sdb1 rw
32 21 0:41 / /scratch rw master:1 propagate_from:2 - lustre 10.0.0.1@tcp:/s rw
33 21 0:42 / /data rw - fuse.sshfs me@host: rw
34 21 0:43 / /over rw - ext4 /dev/sdc1 rw
35 34 0:44 / /over rw - cifs //server/share rw
""".lstrip()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/workspace/optuna.db", True),
        ("/home/me/optuna.db", False),
        ("/home/me/local disk/optuna.db", True),
        ("/homely/optuna.db", True),
        ("/scratch/optuna.db", False),
        ("/data/deep/optuna.db", False),
        ("/over/optuna.db", False),
    ],
)
def test_only_filesystems_of_this_machine_are_local(tmp_path: Path, path: str, expected: bool) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert sqlite.local(Path(path), mounts) is expected


def test_a_filesystem_that_cannot_be_told_is_not_local(tmp_path: Path) -> None:
    assert not sqlite.local(tmp_path, tmp_path / "no such file")


def journal(path: Path) -> str:
    with closing(sqlite3.connect(path)) as database:
        return str(database.execute("PRAGMA journal_mode").fetchone()[0])


def test_the_journal_follows_the_filesystem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "optuna.db"
    monkeypatch.setattr(sqlite, "local", lambda path: True)
    assert sqlite.prepare(path)
    assert journal(path) == "wal"
    monkeypatch.setattr(sqlite, "local", lambda path: False)  # moved to a network filesystem
    assert not sqlite.prepare(path)
    assert journal(path) == "delete"


def test_a_database_in_use_keeps_its_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "optuna.db"
    monkeypatch.setattr(sqlite, "local", lambda path: True)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE t (x)")
        other.execute("BEGIN IMMEDIATE")
        assert not sqlite.prepare(path)
        other.execute("COMMIT")
    assert sqlite.prepare(path)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    path.write_text("notes, and more of them than a header holds: " * 10)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        sqlite.prepare(path)


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A database in a directory that counts as not writable; its last commit is in the log of an open connection."""
    path = tmp_path / "a b?.db"
    monkeypatch.setattr(sqlite, "local", lambda path: True)
    assert sqlite.prepare(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("CREATE TABLE t (x)")
        writer.execute("INSERT INTO t VALUES (1)")
        monkeypatch.setattr(sqlite, "writable", lambda directory: False)
        yield path


def rows(path: Path) -> list[tuple[int]]:
    connect = sqlite.reader(path)
    assert connect is not None
    with closing(connect()) as database:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            database.execute("INSERT INTO t VALUES (9)")
        return database.execute("SELECT x FROM t").fetchall()


def test_a_directory_that_can_be_written_needs_no_reader(tmp_path: Path) -> None:
    assert sqlite.reader(tmp_path / "optuna.db") is None


def test_a_database_that_is_being_written_is_read_with_its_log(logged: Path) -> None:
    assert rows(logged) == [(1,)]


def test_a_database_without_a_log_is_read_alone(logged: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(logged)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    assert {path.name for path in tmp_path.glob("copy*")} == {"copy.db"}
    assert rows(copy) == [(1,)]
    assert {path.name for path in tmp_path.glob("copy*")} == {"copy.db"}  # the log's files cannot be made


def test_a_log_without_its_memory_is_an_error_not_older_rows(logged: Path, tmp_path: Path) -> None:
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{logged}{suffix}", tmp_path / f"copy.db{suffix}")
    with pytest.raises(sqlite3.OperationalError, match=r"commits are in copy\.db-wal alone.*copy both files"):
        sqlite.reader(tmp_path / "copy.db")


def test_the_default_journal_is_read_with_its_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "optuna.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE t (x)")
    monkeypatch.setattr(sqlite, "writable", lambda directory: False)
    assert rows(path) == []
    monkeypatch.setattr(sqlite, "PATIENCE", 0.0)
    connect = sqlite.reader(path)
    assert connect is not None
    with closing(sqlite3.connect(path, isolation_level=None)) as writer, closing(connect()) as database:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            database.execute("SELECT x FROM t")
