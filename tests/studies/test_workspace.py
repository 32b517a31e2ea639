"""Where things lie: the workspace, the study file's `storage`, the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_ray._io.files import write_whole
from kt_ray.config import StorageConfig, validate
from kt_ray.errors import ConfigError, StudyError
from kt_ray.studies.workspace import STORAGE_VARIABLES, Workspace


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


def test_a_uri_keeps_its_options(workspace: Path) -> None:
    options = "?region=eu-west-1&endpoint_override=http://store:9000"
    assert Workspace(workspace, StorageConfig(zoos=f"s3://bucket/zoos{options}")).zoo("a") == (
        f"s3://bucket/zoos/a{options}"
    )
    assert Workspace(workspace, StorageConfig(zoos="s3://bucket/zoos/")).zoo("a") == "s3://bucket/zoos/a"
    assert Workspace(workspace, StorageConfig(zoos="/zoos?")).zoo("a") == "/zoos?/a"  # a directory's name


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.json"
    write_whole(path, b"whole")

    def cut(file: Path, content: bytes) -> None:
        with open(file, "wb") as half:
            half.write(content[:2])
        raise OSError("no space")

    monkeypatch.setattr(Path, "write_bytes", cut)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, b"another")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"whole", [path])


@pytest.mark.parametrize("file", ["study.json", "distill.json"])
@pytest.mark.parametrize("content", [b"", b'{"name": "s", "se', b"\xff\xfe"])
def test_a_damaged_file_of_a_study_is_one_clear_line(file: str, content: bytes, workspace: Path) -> None:
    from typer.testing import CliRunner

    from kt_ray.cli import app

    path = Workspace(workspace).study_directory("s") / file
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    fault = CliRunner().invoke(app, ["resume", "s", "--workspace", str(workspace)]).exception
    assert isinstance(fault, StudyError)
    assert str(fault).startswith(f"{path} is damaged (")
    assert str(fault).endswith("); remove it and run the study file again")


READERS = [
    ["status"],
    ["trials", "s"],
    ["best", "s"],
    ["pareto", "s"],
    ["importance", "s"],
    ["report", "s"],
    ["export", "s", "trials.csv"],
    ["zoo", "info", "z"],
    ["champions"],
    ["resume", "s"],
    ["ui"],
]


@pytest.mark.parametrize("command", READERS, ids=lambda words: words[0])
def test_what_reads_makes_no_workspace(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from kt_ray.cli import app

    monkeypatch.chdir(tmp_path)
    missing = tmp_path / "missing"
    with pytest.raises(ConfigError, match=f"no workspace at {missing}; `kt-ray run` makes one"):
        raise CliRunner().invoke(app, [*command, "--workspace", str(missing)]).exception or AssertionError
    assert list(tmp_path.iterdir()) == []


def test_a_storage_elsewhere_is_read_without_a_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_RAY_STORAGE_TRACKING", "http://mlflow:5000")
    assert Workspace.existing(tmp_path / "missing").tracking_uri == "http://mlflow:5000"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["what?now", "a%20b", "a#b", "~nosuchuser/x"])
def test_a_workspace_that_no_url_can_hold_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Workspace.open(Path(name) if name.startswith("~") else tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "..", "../x", "team A/lr sweep", "a\0b", "a" * 300])
def test_names_from_a_database_stay_in_the_workspace(name: str, tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path)
    for place in (workspace.study_directory, workspace.checkpoints, workspace.zoo):
        with pytest.raises(ConfigError):
            place(name)
    assert workspace.study_directory("lr sweep").parent == tmp_path / "studies"


def test_a_relative_place_for_checkpoints_is_the_same_for_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = Workspace.at(tmp_path, StorageConfig(checkpoints="./ckpts")).checkpoints("s")
    assert here == str(tmp_path / "ckpts/s/checkpoints")
    there = Workspace.at(tmp_path, StorageConfig(checkpoints="s3://bucket/ckpts")).checkpoints("s")
    assert there == "s3://bucket/ckpts/s/checkpoints"


@pytest.mark.parametrize(
    "url", ["postgresql://u@h/db?password=secret", "postgresql://u:a/b@h/db", "mysql://u:p@h:3306/db"]
)
def test_no_place_holds_a_secret(url: str) -> None:
    with pytest.raises(ValueError, match="password") as raised:
        StorageConfig(tracking=url)
    assert "secret" not in str(raised.value).split("input_value")[0]
