"""The SQLite database of a workspace's MLflow: made beside its place and moved there, whole or not at all."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kt_ray._compat.mlflow import ARTIFACT_COLUMNS, make_database, schema_versions
from kt_ray._io import sqlite
from kt_ray.errors import TrackingError

LOCK_SECONDS = 300.0  # to wait for another process that makes the database; on a busy machine it takes a minute
FRESH = {"alembic_version", "workspaces"}  # tables that have rows in a new database, beside the default experiment
ARTIFACT_ROOT = "kt_ray.artifact_root"  # tag of an experiment whose files are beside the database: the folder's URI


def is_whole(path: Path) -> bool:
    """Return whether `path` has an MLflow database, of any version, and not one that was cut short as it was made.

    A database with nothing in it counts unless its tables are those of an earlier version. Raises sqlite3.Error if it
    cannot be read.
    """
    if not path.exists() or path.stat().st_size == 0:
        return False
    with closing(sqlite3.connect(path, timeout=10)) as database:
        tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
        version = None
        if "alembic_version" in tables:
            version = next((row[0] for row in database.execute("select version_num from alembic_version")), None)
        halves = any(name.startswith("_alembic_tmp_") for name in tables)
        if version is not None and not halves:
            known = schema_versions()
            if version == known[0] or version not in known:  # of a later MLflow
                return True
        for name in sorted(tables - FRESH):
            quoted = name.replace('"', '""')
            condition = " where experiment_id != 0" if name == "experiments" else ""
            if database.execute(f'select 1 from "{quoted}"{condition} limit 1').fetchone():
                return True
    return False


def prepare_database(path: Path) -> bool:
    """Make MLflow's database at `path` unless there is one. Returns whether it was made.

    One that another program left half made, with nothing in it, is replaced.
    Raises OSError or an error of SQLite or SQLAlchemy if it cannot be made, TrackingError if another process that makes
    it does not end.
    """
    try:
        return sqlite.make(path, make_database, is_whole, LOCK_SECONDS)
    except TimeoutError:
        raise TrackingError(
            f"another process has been making the MLflow database in {path.parent} for {LOCK_SECONDS:.0f} s; end it "
            "and try again"
        ) from None


def repair_artifact_paths(path: Path) -> list[str]:
    """Make the artifacts beside the database at `path` be found there again, after their folder was moved or copied.

    MLflow keeps absolute paths. Those of experiments that keep their files in the folder `artifacts` of another place
    are changed if that place is where this database was (`ARTIFACT_ROOT`), or if the files are here. Returns the roots
    that they had before. Raises sqlite3.Error if the database cannot be read or written.
    """
    here = (path.parent.absolute() / "artifacts").as_uri()
    with closing(sqlite3.connect(path, timeout=60)) as database:
        rows = database.execute(
            "select e.artifact_location, t.value from experiments e left join experiment_tags t "
            "on t.experiment_id = e.experiment_id and t.key = ?",
            (ARTIFACT_ROOT,),
        ).fetchall()
        before = {root for location, tag in rows if (root := _former_root(location or "", tag, here))}
        if not before:
            return []
        with database:
            for root in before:
                for table, column in ARTIFACT_COLUMNS:
                    database.execute(
                        f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                        (here, len(root) + 1, len(root) + 1, f"{root}/"),
                    )
                database.execute(
                    "update experiment_tags set value = ? where key = ? and value = ?", (here, ARTIFACT_ROOT, root)
                )
    return sorted(before)


def _former_root(location: str, tag: str | None, here: str) -> str | None:
    """The root of an experiment's `location` if that is the folder `artifacts` of where the database was before."""
    root, _, name = location.rpartition("/")
    if not root.endswith("/artifacts") or not root.startswith(("/", "file:")) or root == here:
        return None
    files = Path(unquote(urlsplit(here).path)) / unquote(name)
    return root if tag == root or files.is_dir() else None
