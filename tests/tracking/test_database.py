"""MLflow's database in a workspace: whole or not there, whatever happens while it is made."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from kt_ray.errors import TrackingError
from kt_ray.tracking.database import is_whole, prepare_database
from kt_ray.tracking.store import StoreAway, open_store, reaching
from kt_ray.tracking.tracker import Tracker

OPEN = "import sys; from kt_ray.tracking.store import open_store; open_store(sys.argv[1])"


def opening(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", OPEN, f"sqlite:///{path}"], stderr=subprocess.PIPE)


def cut_short(path: Path) -> None:
    """What older versions left if they were killed while MLflow made its tables."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("create table experiments (experiment_id integer primary key, name text)")
        database.execute("create table alembic_version (version_num varchar(32) not null)")
        database.execute("create table _alembic_tmp_tags (key text)")
        database.execute("insert into experiments values (0, 'Default')")
        database.execute("insert into alembic_version values ('451aebb31d03')")
        database.commit()


def test_half_a_database_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    cut_short(path)
    (tmp_path / ".mlflow.db.making-1").write_text("left by a dead process")
    with pytest.raises(TrackingError, match="there is no MLflow database"):
        open_store(f"sqlite:///{path}", make=False)
    tracker = Tracker(f"sqlite:///{path}", "kt_ray", None)
    assert tracker.study_run("s", {}, {})
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kept", ["runs (run_uuid) values ('r')", "experiments values (1, 'mine')"])
def test_a_database_that_holds_anything_is_never_replaced(kept: str, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    cut_short(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("create table runs (run_uuid text)")
        database.execute(f"insert into {kept}")
        database.commit()
    assert is_whole(path)
    with pytest.raises(TrackingError) as raised:
        open_store(f"sqlite:///{path}")
    assert not isinstance(raised.value, StoreAway)
    with closing(sqlite3.connect(path)) as database:
        rows = (
            database.execute("select * from runs").fetchall() + database.execute("select * from experiments").fetchall()
        )
    assert len(rows) == 2


def test_a_fault_of_the_schema_is_no_store_that_is_away(store_uri: str) -> None:
    with closing(sqlite3.connect(store_uri.removeprefix("sqlite:///"))) as database:
        database.execute("drop table experiment_tags")
        database.commit()
    with pytest.raises(TrackingError) as raised:
        Tracker(store_uri, "kt_ray", None)
    assert not isinstance(raised.value, StoreAway)


def test_a_full_disk_is_told_as_that() -> None:
    with pytest.raises(StoreAway, match="disk is full"), reaching("sqlite:////a/mlflow.db"):
        raise sqlite3.OperationalError("database or disk is full")


@pytest.mark.slow
def test_several_that_start_at_once_all_get_the_database(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    processes = [opening(path) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.slow
def test_a_kill_while_the_tables_are_made_costs_nothing(tmp_path: Path) -> None:
    path, generator, cut = tmp_path / "mlflow.db", random.Random(0), 0
    for _ in range(4):
        process = opening(path)
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob(".mlflow.db.making-*")) and not path.exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if not path.exists():
            cut += 1
        elif not is_whole(path):
            pytest.fail("half a database is in its place")
        else:
            path.unlink()
    assert cut
    assert prepare_database(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mlflow.db"]
    assert os.access(path, os.W_OK)
