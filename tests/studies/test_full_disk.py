"""Whole runs that meet a full disk: nothing is lost, nothing is twice."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.disks import enlarge, small_disk
from tests.studies.miniature import MINIATURE, assert_every_trial_once, finished, kt_ray

pytestmark = pytest.mark.slow


def run(workspace: Path, *options: str) -> subprocess.Popen[str]:
    return kt_ray("run", str(MINIATURE), "--accept-weak", *options, workspace=workspace, new_session=True)


@pytest.mark.parametrize("kilobytes", [40, 600])
def test_a_full_disk_is_told_and_the_same_command_goes_on_with_space(kilobytes: int, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kilobytes) as disk:
        process = run(disk / "workspace")
        assert process.stdout is not None
        told = [line for line in process.stdout if "No space left" in line or "disk is full" in line][:1] or None
        enlarge(disk, 1_000_000)
        process.communicate()
        assert told is not None
        output = finished(run(disk / "workspace"))
        assert "Traceback" not in output
        assert_every_trial_once(disk / "workspace")
