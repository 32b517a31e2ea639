"""The batch script on a machine without Slurm: programs of a few lines stand in for Slurm's, Ray's and kt-ray."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm" / "study.sbatch"
PROGRAMS = {
    "scontrol": 'if [ "$1" = show ]; then echo node7; echo node8; else echo "$@" >>"$OUT/scontrol"; fi',
    "srun": 'while [ "$1" != ray ]; do shift; done; echo "$@" >"$OUT/srun"\nexec "$@"',
    "ray": 'while [ "$1" != -- ]; do shift; done; shift\n"$@"\nexit $?',
    "kt-ray": 'trap \'exit 0\' TERM\necho "$@" >"$OUT/kt-ray"; env >"$OUT/environment"\n'
    'if [ -n "${END:-}" ]; then exit "$END"; fi\nwhile :; do sleep 0.05; done',
}


@pytest.fixture
def allocation(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script: two nodes, settings, a venv with the stand-ins."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, body in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "kt-ray.env").write_text("KT_RAY_WORKSPACE=/shared/w\nRAY_AUTH_TOKEN=t0ken\n")
    return {
        "PATH": f"{programs}:/usr/bin:/bin",
        "OUT": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "HOME": str(tmp_path),
        "KT_RAY_VENV": str(tmp_path / "venv"),
        "KT_RAY_SETTINGS": str(tmp_path / "kt-ray.env"),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "16",
    }


def started(allocation: dict[str, str]) -> subprocess.Popen[bytes]:
    """The script, once its study runs."""
    process = subprocess.Popen(["bash", str(SCRIPT), "study.yaml"], env=allocation)
    pid = Path(allocation["OUT"]) / "kt-ray-4711.pid"
    deadline = time.monotonic() + 300
    while not (pid.exists() and pid.read_text() and (pid.parent / "environment").exists()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_one_ray_cluster_runs_the_study_with_the_settings(allocation: dict[str, str]) -> None:
    allocation["END"] = "3"
    assert subprocess.run(["bash", str(SCRIPT), "study.yaml"], env=allocation).returncode == 3
    out = Path(allocation["OUT"])
    assert (
        (out / "srun")
        .read_text()
        .startswith(
            "ray symmetric-run --address node7:24711 --min-nodes 2 --num-cpus 16 --disable-usage-stats -- bash -c"
        )
    )
    assert (out / "kt-ray").read_text() == "run study.yaml\n"
    environment = (out / "environment").read_text().splitlines()
    assert {"RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN=t0ken", "KT_RAY_WORKSPACE=/shared/w"} <= set(environment)
    assert not (out / "scontrol").exists()


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_signal_ends_the_study_in_order(allocation: dict[str, str], number: signal.Signals, requeued: bool) -> None:
    process = started(allocation)
    os.kill(process.pid, number)
    assert process.wait(300) == 0
    out = Path(allocation["OUT"])
    assert (out / "scontrol").exists() is requeued
    assert not requeued or (out / "scontrol").read_text() == "requeue 4711\n"
    assert not (out / "kt-ray-4711.pid").exists()
