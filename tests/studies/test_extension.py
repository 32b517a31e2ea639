"""What is asked of a study beyond what it was last run with."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from kt_ray.config import DistillConfig, StudyConfig
from kt_ray.errors import ConfigError
from kt_ray.jobs.job import JOB_VARIABLE
from kt_ray.studies.extension import Extension, resume_command
from kt_ray.studies.workspace import Workspace

LAST = StudyConfig.model_validate({"name": "s", "search": {"trials": 12, "hours": 2.0, "seed": 3}})


@pytest.mark.parametrize(
    ("extension", "changed"),
    [
        (Extension(), {}),
        (Extension(trials=5), {"trials": 5}),
        (Extension(add=5), {"trials": 17}),
        (Extension(hours=0.5), {"hours": 0.5}),
        (Extension(add=1, device_hours=8.0), {"trials": 13, "device_hours": 8.0}),
    ],
)
def test_budgets_take_the_place_of_the_last_ones(
    extension: Extension, changed: dict[str, float], tmp_path: Path
) -> None:
    extended = extension.extended(LAST, Workspace(tmp_path))
    assert extended.search.model_dump() == LAST.search.model_dump() | changed


def test_a_study_keeps_its_kind(tmp_path: Path) -> None:
    config = DistillConfig(name="d")
    extended = Extension(add=2).extended(config, Workspace(tmp_path))
    assert (type(extended), type(extended.search)) == (DistillConfig, type(config.search))


def test_trials_and_add_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"^--trials and --add exclude each other; give one$"):
        Extension(trials=3, add=1)


def test_the_command_names_the_workspace_unless_it_is_the_usual_one(tmp_path: Path) -> None:
    config = StudyConfig(name="s")
    assert resume_command(config, Workspace(Path("kt-workspace").absolute())) == "kt-ray resume s"
    assert resume_command(config, Workspace(tmp_path)) == f"kt-ray resume s --workspace {tmp_path}"


def test_commands_are_quoted_for_a_shell(tmp_path: Path) -> None:
    command = resume_command(StudyConfig(name="s"), Workspace(tmp_path / "my ws; rm"))
    assert shlex.split(command) == ["kt-ray", "resume", "s", "--workspace", str(tmp_path / "my ws; rm")]


def test_in_a_job_the_command_resumes_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB_VARIABLE, "s-1126-120000-ab12")
    assert resume_command(StudyConfig(name="s"), Workspace(tmp_path)) == "kt-ray jobs resume s-1126-120000-ab12"
