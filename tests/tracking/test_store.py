from __future__ import annotations

import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kt_ray.errors import TrackingError
from kt_ray.tracking.store import StoreAway, open_store
from kt_ray.tracking.tracker import Tracker
from tests.tracking.servers import free_port


@pytest.fixture
def closed_port() -> int:
    return free_port()


def refused(uri: str) -> str:
    with pytest.raises(TrackingError) as raised:
        Tracker(uri, "kt_ray", None)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_server_that_is_away(closed_port: int) -> None:
    message = refused(f"http://127.0.0.1:{closed_port}")
    assert message == (
        f"no MLflow server answers at http://127.0.0.1:{closed_port} (connection failed); start it, or name another "
        "with storage.tracking"
    )


def test_a_server_that_never_answers() -> None:
    with closing(socket.socket()) as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        assert "(no answer in time)" in refused(f"http://127.0.0.1:{mute.getsockname()[1]}")


def test_a_database_server_that_is_away(closed_port: int) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed (pip install 'psycopg[binary]')")
    message = refused(f"postgresql+psycopg://mlflow:secret@127.0.0.1:{closed_port}/mlflow")
    address = f"postgresql+psycopg://mlflow:***@127.0.0.1:{closed_port}/mlflow"
    assert message.startswith(f"no database answers at {address} ([Errno 111] Connection refused)")


def test_a_driver_that_is_not_there() -> None:
    message = refused("postgresql+nosuch://localhost/mlflow")
    assert message.startswith("no driver for postgresql+nosuch://localhost/mlflow (")


def test_no_such_directory(tmp_path: Path) -> None:
    assert f"no such directory: {tmp_path / 'gone'}" in refused(f"sqlite:///{tmp_path}/gone/mlflow.db")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("hello, this is not a database at all" * 100)
    assert f"{path} is no MLflow database" in refused(f"sqlite:///{path}")


@pytest.mark.parametrize("uri", ["./mlruns", "file:///mlruns", "databricks"])
def test_other_stores_are_refused(uri: str) -> None:
    assert "is neither sqlite:///PATH" in refused(uri)


def test_a_database_of_another_schema(store_uri: str) -> None:
    with closing(sqlite3.connect(store_uri.removeprefix("sqlite:///"))) as database:
        database.execute("update alembic_version set version_num = 'f00dfeedbeef'")
        database.commit()
    message = refused(store_uri)
    assert "has the schema of another MLflow version" in message
    assert "f00dfeedbeef" in message
    assert "mlflow db upgrade" in message


def test_a_locked_database_is_away_for_now(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kt_ray.tracking.store.PROBE_SECONDS", 0.2)
    with closing(sqlite3.connect(store_uri.removeprefix("sqlite:///"))) as holder:
        holder.execute("begin exclusive")
        with pytest.raises(StoreAway, match="locked by another program"):
            open_store(store_uri)
