"""Parts of MLflow 3 that are not public. `tests/compat/test_mlflow.py` fails when a version moves one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

EXPORTED_GRAPH = "data/model.pt2"  # in the folder of a model of the PyTorch flavour in the format pt2

# Columns of MLflow's database that hold where artifacts are: a table, the column.
ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


def make_database(path: Path) -> None:
    """Write a new SQLite database with MLflow's tables at `path`, and leave no connection to it.

    Wish: a function that makes the tables of a URL, as `mlflow db upgrade` does for a database that has some.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    url = f"sqlite:///{path}"
    store = SqlAlchemyStore(url, str(path.parent / "mlruns"))  # type: ignore[no-untyped-call]
    store.engine.dispose()
    SqlAlchemyStore._engine_map.pop(url, None)


def schema_versions() -> list[str]:
    """Return the Alembic revisions that the installed MLflow knows, the one of its own tables first."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    script = ScriptDirectory.from_config(_get_alembic_config(db_url=""))  # type: ignore[no-untyped-call]
    return [revision.revision for revision in script.walk_revisions()]


def artifact_repository(root: str, tracking_uri: str) -> Any:
    """Return MLflow's access to the artifact root `root`: `log_artifact`, `download_artifacts`, `delete_artifacts`.

    Wish: artifacts that belong to no run.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(root, tracking_uri)
