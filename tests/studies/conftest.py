"""A workspace in which a study ran to its end, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.studies.miniature import MINIATURE, finished, kt_ray


@pytest.fixture(scope="session")
def finished_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the miniature ran to its end; what it printed is in `output.txt`."""
    workspace = tmp_path_factory.mktemp("workspace")
    (workspace / "output.txt").write_text(finished(kt_ray("run", str(MINIATURE), "--accept-weak", workspace=workspace)))
    return workspace
