"""What `kt_ray._compat.mlflow` takes from MLflow's private parts does what is said of it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from kt_ray._compat.mlflow import (
    ARTIFACT_COLUMNS,
    artifact_repository,
    make_database,
    schema_versions,
)


def test_a_database_is_made_whole_and_let_go(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    make_database(path)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("select version_num from alembic_version").fetchall() == [(schema_versions()[0],)]
        assert database.execute("select name from experiments").fetchall() == [("Default",)]
        database.execute("begin exclusive")  # nothing holds it
        for table, column in ARTIFACT_COLUMNS:
            assert column in [row[1] for row in database.execute(f"pragma table_info({table})")]
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
    open_files = [Path(f"/proc/self/fd/{name.name}") for name in Path("/proc/self/fd").iterdir()]
    assert path not in [file.resolve() for file in open_files if file.exists()]


def test_an_artifact_root_is_written_read_and_cleared(tmp_path: Path) -> None:
    (file := tmp_path / "probe.txt").write_text("x")
    (back := tmp_path / "back").mkdir()
    repository = artifact_repository((tmp_path / "root").as_uri(), f"sqlite:///{tmp_path}/mlflow.db")
    repository.log_artifact(str(file))
    repository.download_artifacts("probe.txt", str(back))
    assert (back / "probe.txt").read_text() == "x"
    repository.delete_artifacts("probe.txt")
    assert not list((tmp_path / "root").iterdir())
