"""Whole runs that meet a full disk, a signal to their group or another run: nothing is lost, nothing is twice."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.disks import enlarge, small_disk
from tests.studies.miniature import (
    ENDS,
    MINIATURE,
    assert_every_trial_once,
    finished,
    kt_ray,
    study_of,
    wait_until_searching,
)

pytestmark = pytest.mark.slow
LONGER = ["--set", "trial.training.epochs=6", "--set", "search.pruner={name: none}"]


def run(workspace: Path, *options: str) -> subprocess.Popen[str]:
    return kt_ray("run", str(MINIATURE), "--accept-weak", *options, workspace=workspace, new_session=True)


@pytest.mark.parametrize("kilobytes", [40, 600, 2_500])
def test_a_full_disk_is_told_and_the_same_command_goes_on_with_space(kilobytes: int, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kilobytes) as disk:
        process = run(disk / "workspace")
        assert process.stdout is not None
        told = next((line for line in process.stdout if "No space left" in line or "disk is full" in line), None)
        enlarge(disk, 1_000_000)
        process.communicate()
        assert told is not None
        output = finished(run(disk / "workspace"))
        assert "Traceback" not in output
        assert_every_trial_once(disk / "workspace")


def test_a_signal_to_the_whole_group_ends_a_search_in_order(tmp_path: Path) -> None:
    """As `timeout`, Slurm and systemd send it: Ray's processes get it too."""
    process = run(tmp_path, *LONGER)
    wait_until_searching(process, tmp_path)
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate()[0]
    assert process.returncode in (0, 128 + signal.SIGTERM), output
    assert "nothing is lost" in output
    assert "Traceback" not in output
    ended = {trial.number for trial in study_of(tmp_path).trials if trial.state in ENDS}
    finished(run(tmp_path, *LONGER))
    assert_every_trial_once(tmp_path)
    assert ended <= {trial.number for trial in study_of(tmp_path).trials if trial.state in ENDS}


def test_runs_beside_each_other_do_nothing_twice(tmp_path: Path) -> None:
    """Two runs from the start on, then a `resume` and a third run while one of them searches."""
    both = [run(tmp_path, *LONGER), run(tmp_path, *LONGER)]
    outputs = [process.communicate()[0] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 2]), outputs
    if codes == [0, 2]:
        assert sum("is being searched by" in output for output in outputs) == 1
    assert_every_trial_once(tmp_path)


@pytest.mark.parametrize("command", [["resume", "miniature"], ["run", str(MINIATURE), *LONGER]])
def test_a_command_beside_a_search_is_refused_by_its_name(command: list[str], tmp_path: Path) -> None:
    process = run(tmp_path, *LONGER)
    wait_until_searching(process, tmp_path)
    os.kill(process.pid, signal.SIGSTOP)  # it lives, and goes on later
    try:
        second = kt_ray(*command, workspace=tmp_path)
        output = second.communicate()[0]
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert (second.returncode, "is being searched by" in output) == (2, True), output
    finished(process)
    assert_every_trial_once(tmp_path)
