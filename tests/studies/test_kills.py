"""`kill -9` at random moments of a whole `kt-ray run`: what is done is there once, and nothing else is left."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from kt_ray._io.scratch import scratch_directory
from kt_ray.zoo.store import ZooStore
from tests.studies.miniature import MINIATURE, assert_every_trial_once, finished, kt_ray, runs_of

KILLS = 25
OF_LIBRARIES = {"ray", "torchinductor_root"}  # folders that Ray and torch keep under the temporary one


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary folder of the commands, whose name is short enough for Ray's sockets."""
    with scratch_directory("k-") as folder:
        monkeypatch.setenv("TMPDIR", str(folder))
        yield folder


@pytest.mark.slow
def test_whole_runs_killed_at_random_moments(tmp_path: Path, temporary: Path) -> None:
    """Workspace after workspace is brought to its end, each run killed within the time that the first one took."""
    chance, kills, number = random.Random(18), 0, 0
    began = time.monotonic()
    finished(run(tmp_path / "undisturbed"))
    length = time.monotonic() - began
    while kills < KILLS:
        workspace, number = tmp_path / str(number), number + 1
        while kills < KILLS and killed(run(workspace), length * chance.random()):
            kills += 1
        finished(run(workspace))
        assert_everything_once(workspace)
        assert_nothing_left(workspace, temporary)


def run(workspace: Path) -> subprocess.Popen[str]:
    return kt_ray("run", str(MINIATURE), "--accept-weak", workspace=workspace)


def killed(process: subprocess.Popen[str], after: float) -> bool:
    """Kill the command `after` so many seconds, unless it ends before."""
    try:
        output, _ = process.communicate(timeout=after)
        assert process.returncode == 0, output
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True


def assert_everything_once(workspace: Path) -> None:
    assert_every_trial_once(workspace)
    runs = runs_of(workspace)
    assert len({run.info.run_name for run in runs}) == len(runs)
    client = mlflow.MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    (version,) = client.search_model_versions("name = 'kt-translator'")
    (model,) = client.search_logged_models([runs[0].info.experiment_id])
    assert version.source == f"models:/{model.model_id}"
    assert len(list((workspace / "artifacts").rglob("MLmodel"))) == 1
    assert len(list((workspace / "artifacts").rglob("report.html"))) == 1
    store = ZooStore(str(workspace / "zoos" / "miniature"))
    assert store.verify() == []
    ids = store.index()["id"].to_pylist()
    assert len(ids) == len(set(ids)) == 8


def assert_nothing_left(workspace: Path, temporary: Path) -> None:
    """No half-written file, socket or folder, and no process that was started for the workspace, once they had time."""
    assert {path.name for path in workspace.rglob(".*")} == {".lock"}
    assert [path for path in workspace.rglob("*") if path.is_socket()] == []
    assert {path.name for path in temporary.iterdir()} <= OF_LIBRARIES
    deadline = time.monotonic() + 300
    while processes(workspace) and time.monotonic() < deadline:
        time.sleep(1)
    assert processes(workspace) == []


def processes(workspace: Path) -> list[str]:
    """Command lines of living processes that were started with this workspace in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            if f"KT_RAY_WORKSPACE={workspace}".encode() in variables and int(process.name) != os.getpid():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended, or is another user's
            continue
    return found
