"""A workspace in which a study ran to its end, made once for all workers of a test run."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock

from tests.studies.miniature import MINIATURE, said


@pytest.fixture(scope="session")
def finished_workspace(tmp_path_factory: pytest.TempPathFactory, worker_id: str, ray_session: None) -> Path:
    """A workspace in which the miniature ran to its end; what it printed is in `output.txt`."""
    place = tmp_path_factory.getbasetemp()
    made = (place if worker_id == "master" else place.parent) / "finished"
    with FileLock(f"{made}.lock"):
        if not (made / "output.txt").exists():
            output = said("run", str(MINIATURE), "--accept-weak", workspace=made)
            with closing(sqlite3.connect(made / "optuna.db")) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # as when the command's process ends
            (made / "output.txt").write_text(output)
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("finished") / "workspace"))
