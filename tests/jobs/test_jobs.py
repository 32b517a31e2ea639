"""Jobs on a real Ray head with its job server and token authentication, on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kt_ray._compat.ray import TimedJobClient
from kt_ray.errors import ConfigError, ResourceError, StudyError
from kt_ray.jobs import job as jobs
from kt_ray.jobs.client import ADDRESS_VARIABLES
from kt_ray.jobs.job import Request
from kt_ray.jobs.packing import packed
from kt_ray.studies.cluster_check import check_cluster
from kt_ray.studies.submission import submit
from tests.tracking.servers import free_port

STUDY = "name: tiny\ndataset: {selection_images: 100}\n"


@pytest.fixture(scope="module")
def head(ray_session: None) -> Iterator[str]:
    """URL of the job server of a Ray head that wants a token: the one that `ray_session` has made for this user."""
    port = free_port()
    directory = tempfile.mkdtemp(prefix="kt-", dir="/tmp")  # Ray's sockets must have short paths
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        f"--port={free_port()}",
        f"--dashboard-port={port}",
        f"--temp-dir={directory}",
        "--disable-usage-stats",
        f"--ray-client-server-port={free_port()}",
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    with open(Path(directory) / "head.log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                time.sleep(0.5)
                try:
                    jobs.jobs(url)
                    break
                except ResourceError:
                    assert process.poll() is None, Path(log.name).read_text()
            else:
                pytest.fail(f"no job server after 300 s:\n{Path(log.name).read_text()}")
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(300)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study file."""
    file = tmp_path / "tiny.yaml"
    file.write_text(STUDY)
    return file


def stand_in(tmp_path: Path, body: str) -> str:
    """A program in the place of the cluster's Python: what a job does is not the matter of these tests."""
    program = tmp_path / "python.sh"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return str(program)


def test_the_entrypoint_quotes_what_people_give() -> None:
    request = Request("", ["name=a b", "search.trials=3"], "/shared/my work", {}, True, "python", "run")
    assert request.entrypoint() == (
        "exec python -m kt_ray run study.yaml --workspace '/shared/my work' --set 'name=a b' --set search.trials=3"
    )
    elsewhere = replace(request, workspace=None).entrypoint()
    assert '--workspace "${KT_RAY_WORKSPACE:-$HOME/kt-workspace}"' in elsewhere


def test_what_travels_is_small_and_runs_by_itself() -> None:
    with packed(STUDY) as directory:
        files = [file for file in directory.rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) < 8_000_000
        assert not [file for file in files if file.suffix == ".pyc" or "tests" in file.parts]
        show = "import kt_ray, kt_ray.search_spaces as s; print(kt_ray.__file__, s.__file__)"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        where = subprocess.run(
            [sys.executable, "-c", show], cwd=directory, env=environment, capture_output=True, text=True, check=True
        )
        assert where.stdout.split() == [
            str(directory / "kt_ray/__init__.py"),
            str(directory / "kt_ray/search_spaces/__init__.py"),
        ]
        assert (directory / "study.yaml").read_text() == STUDY
    with packed(STUDY, code=False) as directory:
        assert [file.name for file in directory.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:1", "no job server answers"),
        ("127.0.0.1:1", "no job server answers at http://127.0.0.1:1"),
        ("ray://127.0.0.1:10001", "no address of a job server"),
        ("os.path://x", "no address of a job server"),
        ("http://user:pass@127.0.0.1:1", "RAY_AUTH_TOKEN"),
    ],
)
def test_a_dead_or_wrong_address_is_refused(address: str, message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        jobs.jobs(address)


def test_a_server_that_never_answers_is_left_after_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kt_ray.jobs.client.ANSWER_SECONDS", 0.5)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(ResourceError, match="no job server answers"):
        jobs.jobs(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_the_address_asked_for_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ADDRESS_VARIABLES:
        monkeypatch.setenv(name, "http://127.0.0.1:2")
    with pytest.raises(ResourceError, match=r"127\.0\.0\.1:1 "):
        jobs.jobs("http://127.0.0.1:1")
    assert jobs.job_server() == "http://127.0.0.1:2"


def test_secrets_are_not_sent_with_a_job(study: Path) -> None:
    with pytest.raises(ConfigError, match="PGPASSWORD, AWS_SECRET_ACCESS_KEY would be shown"):
        submit(study, environment={"PGPASSWORD": "x", "AWS_SECRET_ACCESS_KEY": "y", "KT_RAY_DATA": "/data"})


def test_a_wrong_study_file_is_told_before_anything_is_sent(tmp_path: Path, study: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        submit(tmp_path / "missing.yaml", "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="trials"):
        submit(study, "http://127.0.0.1:1", overrides=["search.trials=0"])


def test_without_the_token_the_cluster_refuses(head: str) -> None:
    ask = f"from kt_ray.jobs.job import jobs; jobs({head!r})"
    for given in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "not-this-one" * 3}):
        answer = subprocess.run(
            [sys.executable, "-c", ask], env=os.environ | given, capture_output=True, text=True, timeout=300
        )
        last = answer.stderr.strip().splitlines()[-1]
        assert "ResourceError" in last, answer.stderr
        assert "RAY_AUTH_TOKEN" in last
        assert "not-this-one" not in answer.stderr


def test_the_exit_status_and_log_of_a_job_come_back(head: str, study: Path, tmp_path: Path) -> None:
    python = stand_in(tmp_path, 'echo "$@"; echo to stderr >&2; exit 7')
    job = submit(study, head, workspace="/w", overrides=["search.trials=3"], python=python)
    printed: list[str] = []
    ended = jobs.follow(job, head, printed.append)
    assert (ended.status, ended.exit_status, ended.study, ended.workspace) == ("FAILED", 7, "tiny", "/w")
    assert "-m kt_ray run study.yaml --workspace /w --set search.trials=3\nto stderr\n" in "".join(printed)
    assert jobs.logs(job, head) == "".join(printed)
    assert next(iter(jobs.jobs(head))).id == job


def test_a_log_is_whole_and_told_once_though_its_tail_breaks(
    head: str, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tail = TimedJobClient.tail_job_logs

    async def breaking(client: TimedJobClient, job: str) -> AsyncIterator[str]:
        async for piece in tail(client, job):
            yield piece  # of ten lines at most
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    monkeypatch.setattr(TimedJobClient, "tail_job_logs", breaking)
    job = submit(study, head, workspace="/w", python=stand_in(tmp_path, "seq 1 30; sleep 3; seq 31 60"))
    printed: list[str] = []
    assert jobs.follow(job, head, printed.append).exit_status == 0
    assert [line for line in "".join(printed).splitlines() if line.isdigit()] == [str(i) for i in range(1, 61)]


def test_a_job_is_stopped_in_order_and_resumed(head: str, study: Path, tmp_path: Path) -> None:
    python = stand_in(tmp_path, "trap 'echo ending in order; exit 0' TERM\necho started\nwhile :; do sleep 0.1; done")
    job = submit(study, head, workspace=str(tmp_path), python=python)
    printed: list[str] = []
    following = threading.Thread(target=jobs.follow, args=(job, head, printed.append), daemon=True)
    following.start()
    deadline = time.monotonic() + 300
    while "started\n" not in "".join(printed):
        assert following.is_alive(), printed
        assert time.monotonic() < deadline, printed
        time.sleep(0.1)
    with pytest.raises(StudyError, match=f"already run by job {job}"):
        submit(study, head, workspace=str(tmp_path), python=python)
    ended = jobs.stop(job, head)
    following.join(300)
    assert not following.is_alive()
    assert (ended.status, ended.exit_status, ended.running) == ("STOPPED", 143, False)
    assert "ending in order" in "".join(printed)
    stand_in(tmp_path, "cat study.yaml; exit 0")
    again = jobs.follow(jobs.resume(job, head), head, printed.append)
    assert (again.status, again.exit_status, again.workspace) == ("SUCCEEDED", 0, str(tmp_path))
    assert STUDY in "".join(printed)


def test_an_unknown_job_names_those_there_are(head: str) -> None:
    for ask in (jobs.logs, jobs.stop, jobs.resume, jobs.follow):
        with pytest.raises(StudyError, match="no job 'nothing' of kt_ray"):
            ask("nothing", head)


def test_every_node_is_asked_for_versions_and_storages(head: str, study: Path, tmp_path: Path) -> None:
    dead = [
        "storage.study=postgresql+psycopg://nobody@127.0.0.1:1/x",
        f"storage.tracking={head}",
        "storage.zoos=/proc/x",
        "storage.artifacts=file:///proc/y",
    ]
    found = check_cluster(study, head, workspace=str(tmp_path / "w"), python=sys.executable, overrides=dead)
    assert len(found.nodes) == 1
    assert set(found.nodes[0].versions) == {"python", "ray", "torch", "kt_ray"}
    assert [problem.split(": ")[1].split()[0] for problem in found.problems] == [
        "zoos",
        "study",
        "tracking",
        "artifacts",
    ]
    assert not list((tmp_path / "w").glob(".kt-ray-probe*"))


@pytest.mark.slow
def test_a_real_study_ends_in_order_and_goes_on_as_another_job(head: str, tmp_path: Path) -> None:
    import mlflow
    import optuna

    trials = 8
    overrides = [f"search.trials={trials}", "trial.training.steps_per_epoch=20", "search.concurrency=1"]
    study = Path(__file__).parents[1] / "miniature.yaml"
    job = submit(study, head, workspace=str(tmp_path), overrides=overrides, python=sys.executable)
    while "search: trials" not in jobs.logs(job, head):
        assert next(entry for entry in jobs.jobs(head) if entry.id == job).running, jobs.logs(job, head)
        time.sleep(0.3)
    jobs.stop(job, head)
    assert "stopped by SIGTERM; nothing is lost" in jobs.logs(job, head)
    ended = jobs.follow(jobs.resume(job, head), head, lambda text: None)
    assert ended.exit_status == 0, jobs.logs(ended.id, head)
    found = optuna.load_study(study_name="miniature", storage=f"sqlite:///{tmp_path / 'optuna.db'}").trials
    ends = [trial.system_attrs.get("failed_trial", trial.number) for trial in found if trial.state.name != "FAIL"]
    assert len(ends) == len(set(ends)) == trials
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("kt_ray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    assert len(runs) == len({run.info.run_name for run in runs}) == 1 + 1 + trials  # zoo, study, trials
