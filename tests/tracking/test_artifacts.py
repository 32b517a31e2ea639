"""Artifact roots of every kind: a directory, object storage, and what a server gives."""

from __future__ import annotations

import sqlite3
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from kt_ray.errors import TrackingError
from kt_ray.tracking.artifacts import probe_artifacts


def test_a_directory_is_left_as_it_was(store_uri: str, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    root.mkdir()
    probe_artifacts(store_uri, root.as_uri())
    assert list(root.iterdir()) == []


def test_what_cannot_be_written_is_named(store_uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        TrackingError, match=r"artifacts cannot be kept at file:///.*/file/artifacts \(.*Not a directory"
    ):
        probe_artifacts(store_uri, (tmp_path / "file" / "artifacts").as_uri())
    with pytest.raises(TrackingError, match="cannot be kept at nowhere://x"):
        probe_artifacts(store_uri, "nowhere://x")


def test_a_server_keeps_them(server: str) -> None:
    probe_artifacts(server, "mlflow-artifacts:/")


def test_a_directory_of_the_store_is_not_made_here(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = store_uri.removeprefix("sqlite:///")
    for place, refused in ((tmp_path, False), (tmp_path / "missing", True), (Path("mlruns"), True)):
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE experiments SET artifact_location = ?", [str(place / "0")])
        before = sorted(tmp_path.iterdir())
        with pytest.raises(TrackingError, match=f"in the directory {place} of whoever") if refused else nullcontext():
            probe_artifacts(store_uri)
        assert sorted(tmp_path.iterdir()) == before
        assert not Path("mlruns").exists()


def test_a_bucket_keeps_them(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server", reason="moto, a local S3 server, is not installed")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    storage = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    storage.start()
    try:
        host, port = storage.get_host_and_port()
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="artifacts")
        probe_artifacts(store_uri, "s3://artifacts/mlflow")
        assert client.list_objects_v2(Bucket="artifacts")["KeyCount"] == 0
        with pytest.raises(TrackingError, match=r"cannot be kept at s3://missing/mlflow \(.*bucket"):
            probe_artifacts(store_uri, "s3://missing/mlflow")
    finally:
        storage.stop()
