"""`miniature.yaml` run as a person runs it, by the command: in a process of its own, or in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from kt_ray.cli import app

MINIATURE = Path(__file__).parents[1] / "miniature.yaml"


def kt_ray(*arguments: str, workspace: Path, new_session: bool = False) -> subprocess.Popen[str]:
    """The command as a process of its own, as a person starts it."""
    environment = os.environ | {"KT_RAY_WORKSPACE": str(workspace), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "kt_ray", *arguments]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=new_session,
    )


def finished(process: subprocess.Popen[str], seconds: float = 900) -> str:
    """What it printed, once it ended well."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
    return output


def said(*arguments: str, workspace: Path) -> str:
    """What the command prints in this process, with the Ray session that it has, once it ended well."""
    result = CliRunner().invoke(app, arguments, env={"KT_RAY_WORKSPACE": str(workspace)}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output
