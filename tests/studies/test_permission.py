"""A study's code runs where a person allowed exactly this text, and nowhere else. The code here leaves a mark."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import kt_ray as kt
from kt_ray import register
from kt_ray._io.checksum import json_with_checksum
from kt_ray.cli import main
from kt_ray.config.code import CodeFile, read_code
from kt_ray.config.study_code import unload_code
from kt_ray.errors import ConfigError, StudyError
from kt_ray.jobs.job import Request
from kt_ray.studies.permission import Permission
from kt_ray.studies.study_file import FILE, read_study, read_with_source, store_config, stored_code, study_config
from kt_ray.studies.validation import validate_file
from kt_ray.studies.workspace import Workspace

CODE = """
from pathlib import Path
from kt_ray import register
Path({mark!r}).touch()
register.network("mine")(dict)
"""
STUDY = """
name: own
code: [net.py]
dataset: {name: mnist5k, train_images: 64, selection_images: 32}
ray: {cpus: 1}
"""


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """What is there once the code has run."""
    yield tmp_path / "mark"
    unload_code("net.py")


@pytest.fixture
def study(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study file with code beside it, and an empty workspace."""
    monkeypatch.setenv("KT_RAY_WORKSPACE", str(tmp_path / "workspace"))
    (tmp_path / "net.py").write_text(CODE.format(mark=str(mark)))
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path / "study.yaml"


@pytest.fixture
def kt_ray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command, in this process: its exit status, and what it prints on standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kt-ray", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.mark.parametrize(
    "command",
    [("run",), ("search",), ("zoo", "build"), ("zoo", "import", "."), ("validate",), ("submit",), ("spaces", "show")],
    ids=" ".join,
)
def test_without_permission_nothing_runs(
    study: Path, mark: Path, kt_ray: Callable[..., tuple[int, str, str]], command: tuple[str, ...]
) -> None:
    status, printed, complaint = kt_ray(*command, str(study))
    (file,) = read_code(["net.py"], study.parent)
    assert (status, printed, complaint.count("\n")) == (2, "", 1)
    assert f"net.py is code that the study runs, SHA-256 {file.sha256}" in complaint
    assert not mark.exists()
    assert not (study.parent / "workspace").exists()


def test_what_was_allowed_is_allowed_in_this_workspace_as_long_as_it_is_the_same(study: Path, mark: Path) -> None:
    here, elsewhere = Permission.at(), Permission.at(study.parent / "elsewhere")
    config = read_study(study, permission=Permission.at(given=True))
    assert mark.exists()
    assert register.network.get("mine").origin == f"code {config.code[0].sha256}"
    assert read_study(study) == config
    assert here.covers(config.code)
    assert not elsewhere.covers(config.code)
    (study.parent / "net.py").write_text("raise SystemExit  # changed")
    with pytest.raises(ConfigError, match=r"net\.py is code that the study runs"):
        read_study(study)
    with pytest.raises(ConfigError, match=r"net\.py:1: SystemExit"):
        read_study(study, permission=Permission.at(given=True))
    assert not here.covers(read_code(["net.py"], study.parent))


def copied(path: Path) -> None:
    content = path.read_bytes()
    path.rename(path.with_name("other"))
    path.write_bytes(content)
    path.chmod(0o600)


def linked(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("other")))


def writable_by_others(path: Path) -> None:
    path.chmod(0o620)


def no_list(path: Path) -> None:
    path.write_text("[" * 100_000)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    "spoil", [copied, linked, writable_by_others, no_list, a_pipe], ids=lambda spoil: spoil.__name__
)
def test_a_list_from_someone_else_allows_nothing(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    files = (
        CodeFile.model_validate({"name": "net.py", "text": "from kt_ray import register\nregister.loss('a')(dict)"}),
    )
    Permission(tmp_path, given=True).run(files)
    unload_code("net.py")
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert Permission(tmp_path).covers(files)
    spoil(path)
    with pytest.raises(ConfigError, match="SHA-256"):
        Permission(tmp_path).run(files)
    assert "a" not in register.loss.names()


def test_a_stored_study_runs_its_code_only_if_that_is_allowed(study: Path, mark: Path) -> None:
    config = read_study(study, permission=Permission(study.parent / "elsewhere", given=True))
    workspace = Workspace.open()
    store_config(config, workspace)
    mark.unlink()
    unload_code("net.py")
    (study.parent / "net.py").unlink()

    for read in (kt.open_study, kt.resume):
        with pytest.raises(ConfigError, match=r"net\.py is code that the study runs"):
            read("own")
    assert not mark.exists()
    assert kt.open_study("own", allow_code=True).config == config
    assert mark.exists()
    assert Permission.at().covers(stored_code("own", workspace))


def test_a_stored_study_whose_code_was_changed_is_damaged(study: Path, mark: Path) -> None:
    config = read_study(study, permission=Permission.at(given=True))
    workspace = Workspace.open()
    store_config(config, workspace)
    content = config.model_dump(mode="json")
    content["code"][0]["text"] += "# more"
    (workspace.study_directory("own") / FILE).write_bytes(json_with_checksum(content))
    mark.unlink()
    unload_code("net.py")
    with pytest.raises(StudyError, match="damaged"):
        kt.resume("own", allow_code=True)
    assert not mark.exists()


def test_validation_runs_what_is_allowed(study: Path, mark: Path, kt_ray: Callable[..., tuple[int, str, str]]) -> None:
    validate_file(study, permission=Permission.at(given=True), here=False)
    assert mark.exists()
    status, printed, _ = kt_ray("spaces", "show", str(study))
    assert (status, "own" in printed) == (0, True)


def test_what_a_job_gets_has_the_code_in_it(study: Path, mark: Path) -> None:
    config, source = read_with_source(study, ["search.trials=3"], permission=Permission.at(given=True))
    elsewhere = study.parent / "job"
    elsewhere.mkdir()
    (elsewhere / "study.yaml").write_text(source.text())
    assert read_study(elsewhere / "study.yaml") == config
    assert config.search.trials == 3
    request = Request(source.text(), [], None, {}, True, "python", "run", allow_code=True)
    assert "kt_ray run --allow-code study.yaml" in request.entrypoint()
    assert "kt_ray.studies --allow-code study.yaml" in replace(request, command="check").entrypoint()


def test_faults_of_code_have_the_line_of_the_study_file(study: Path, mark: Path) -> None:
    (study.parent / "net.py").unlink()
    with pytest.raises(ConfigError, match=r"study\.yaml:3: code\.0: no such file"):
        read_with_source(study)


def test_a_mapping_has_its_code_in_the_working_directory(
    study: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study.parent)
    with pytest.raises(ConfigError, match="SHA-256"):
        study_config({"name": "own", "code": ["net.py"]})
    assert not mark.exists()
    config = study_config({"name": "own", "code": ["net.py"]}, permission=Permission.at(given=True))
    assert mark.exists()
    assert config.code == read_code(["net.py"], study.parent)
