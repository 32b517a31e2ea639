"""Where things lie: the workspace, the study file's `storage`, the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_ray.config import StorageConfig, validate
from kt_ray.errors import ConfigError
from kt_ray.workspace import STORAGE_VARIABLES, Workspace


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in STORAGE_VARIABLES.values():
        monkeypatch.delenv(name, raising=False)


def test_everything_lies_in_the_workspace_unless_set(workspace: Path) -> None:
    opened = Workspace.open(workspace)
    assert opened.study_storage == f"sqlite:///{workspace / 'optuna.db'}"
    assert opened.tracking_uri == f"sqlite:///{workspace / 'mlflow.db'}"
    assert opened.zoo("a") == f"{workspace / 'zoos'}/a"


def test_the_environment_overrides_the_study_file(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_RAY_STORAGE_STUDY", "postgresql+psycopg://kt_ray@database/optuna")
    monkeypatch.setenv("KT_RAY_STORAGE_ZOOS", "s3://bucket/zoos")
    opened = Workspace.open(workspace, StorageConfig(study="sqlite:////elsewhere.db", tracking="http://mlflow:5000"))
    assert opened.study_storage == "postgresql+psycopg://kt_ray@database/optuna"
    assert opened.tracking_uri == "http://mlflow:5000"
    assert opened.zoo("a") == "s3://bucket/zoos/a"


def test_a_password_in_a_url_is_refused_and_not_repeated(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "postgresql://kt_ray:tr0ub4dor@database/optuna"
    with pytest.raises(ConfigError, match="PGPASSWORD") as from_file:
        validate(StorageConfig, {"study": secret})
    monkeypatch.setenv("KT_RAY_STORAGE_STUDY", secret)
    with pytest.raises(ConfigError, match="PGPASSWORD") as from_environment:
        Workspace.open(workspace)
    assert "tr0ub4dor" not in str(from_file.value) + str(from_environment.value)
