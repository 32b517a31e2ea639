"""What is asked of a study beyond what it was last run with."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_ray.config import DistillConfig, StudyConfig
from kt_ray.errors import ConfigError
from kt_ray.studies.resuming import Extension, resume_command
from kt_ray.studies.workspace import Workspace

LAST = StudyConfig.model_validate({"name": "s", "search": {"trials": 12, "hours": 2.0, "seed": 3}}).search


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
def test_budgets_take_the_place_of_the_last_ones(extension: Extension, changed: dict[str, float]) -> None:
    assert extension.extended(LAST).model_dump() == LAST.model_dump() | changed


def test_a_search_keeps_its_kind() -> None:
    search = DistillConfig(name="d").search
    assert type(Extension(add=2).extended(search)) is type(search)


def test_trials_and_add_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"^--trials and --add exclude each other; give one$"):
        Extension(trials=3, add=1)


def test_the_command_names_the_workspace_unless_it_is_the_usual_one(tmp_path: Path) -> None:
    config = StudyConfig(name="s")
    assert resume_command(config, Workspace(Path("kt-workspace").absolute())) == "kt-ray resume s"
    assert resume_command(config, Workspace(tmp_path)) == f"kt-ray resume s --workspace {tmp_path}"
