"""Standard output is never trusted: whatever it is, a command ends in order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kt_ray.cli import app
from kt_ray.config import StudyConfig
from kt_ray.search.storage import open_storage
from tests.search.stand_in import study_config
from tests.search.test_study import searched


@pytest.mark.parametrize(
    ("redirection", "encoding", "status", "lines"),
    [
        (">&-", "utf-8", 0, 0),
        ("2>&- >/dev/null", "utf-8", 0, 0),
        ("> /dev/null", "latin-1", 0, 0),
        ("> /dev/full", "utf-8", 2, 1),
    ],
)
def test_any_output_ends_in_order(redirection: str, encoding: str, status: int, lines: int) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = f'"{sys.executable}" -m kt_ray spaces show quickstart {redirection}'
    ended = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stderr
    assert len(ended.stderr.splitlines()) == lines


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_trials_fit_the_terminal(columns: int, tmp_path: Path) -> None:
    space = {f"augmentation.noise.{name}": {"float": [0.0, 1.0]} for name in "abcdef"}
    config = study_config(trials=3, sampler={"name": "random"})
    config = config.model_copy(update={"space": config.space | StudyConfig(name="more", space=space).space})
    searched(config, open_storage(f"sqlite:///{tmp_path}/optuna.db"))
    command = ["trials", config.name, "--workspace", str(tmp_path)]

    brief, every = (
        CliRunner().invoke(app, [*command, *more], env={"COLUMNS": str(columns)}) for more in ([], ["--all"])
    )

    assert brief.exit_code == every.exit_code == 0, brief.output + every.output
    assert max(map(len, brief.stdout.splitlines())) <= columns
    assert "COMPLETE" in brief.stdout
    assert "--all" in brief.stdout
    assert all(name in every.stdout for name in ("device_hours", "learning_rate", "tries"))
