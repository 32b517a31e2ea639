"""Joining a Ray cluster: one that is there, and what people type by mistake."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kt_ray.config import RayConfig
from kt_ray.errors import ResourceError
from kt_ray.jobs import connection
from kt_ray.jobs.connection import connected, fitting

JOIN = """
import sys, ray
from kt_ray.config import RayConfig
from kt_ray.errors import KTError
from kt_ray.jobs.connection import connected
try:
    with connected(RayConfig(address=sys.argv[1])):
        print(ray.get(ray.remote(lambda: "joined").remote()))
except KTError as error:
    print(error)
"""


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own session would be used instead of an address."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and says nothing, as a head that hangs does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def page() -> Iterator[str]:
    """A server of web pages, as on a dashboard's port."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def refusal(address: str) -> str:
    """What `connected` says of `address`; `ray.init` would try for minutes."""
    with pytest.raises(ResourceError) as error, connected(RayConfig(address=address)):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.usefixtures("no_session")
def test_what_is_no_head_is_told_at_once(silent: str, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as hasty:
        hasty.setattr("kt_ray.jobs.connection.ANSWER_SECONDS", 1.0)
        assert f"no Ray cluster answers at '{silent}' (timed out); start one with" in refusal(silent)
    assert "is no Ray head, whose port is 6379" in refusal(page)
    assert "Connection refused" in refusal("127.0.0.1:1")
    assert "Connection refused" in refusal("ray://127.0.0.1:1")
    assert "for `kt-ray submit`" in refusal(f"http://{page}")
    assert "expected HOST:PORT" in refusal("head")


def test_the_command_ends_with_status_2_and_a_line(silent: str) -> None:
    study = Path(__file__).parents[1] / "miniature.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "kt_ray", "validate", str(study), "--address", silent],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"no Ray cluster answers at '{silent}'" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def join_from_another_process(**environment: str) -> str:
    """What a process says that joins the tests' session, which listens on loopback alone."""
    import ray

    address = ray.get_runtime_context().gcs_address
    assert address.startswith("127.0.0.1:")
    done = subprocess.run(
        [sys.executable, "-c", JOIN, address], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.usefixtures("ray_session")
def test_a_cluster_on_loopback_alone_is_joined() -> None:
    assert join_from_another_process(RAY_AUTH_MODE="token") == "joined"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "given", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}]
)
def test_without_its_token_a_cluster_refuses(given: dict[str, str]) -> None:
    said = join_from_another_process(**given)
    assert said.startswith("the Ray cluster at 127.0.0.1:")
    assert said.endswith("set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's")


@pytest.mark.usefixtures("ray_session")
def test_what_fits_is_counted_over_nodes() -> None:
    assert fitting({"CPU": 1}) == 2
    assert fitting({"CPU": 0.5, "GPU": 0}) == 4
    with pytest.raises(ResourceError, match=r"no node has GPU=1; the cluster's nodes have: CPU=2"):
        fitting({"GPU": 1})
    with pytest.raises(ResourceError, match=r"labels {'role': 'worker'}"):
        fitting({"CPU": 1}, {"role": "worker"})


@pytest.mark.parametrize(("share", "expected"), [(0.25, 8), (0.4, 4), (0.6, 2), (0.7, 2), (1, 2)])
def test_a_share_of_a_gpu_is_of_one(share: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0}}
    monkeypatch.setattr(connection.ray, "nodes", lambda: [node])
    assert fitting({"CPU": 1, "GPU": share}) == expected


BLOCKED = """
import signal, ray
from kt_ray.config import RayConfig
from kt_ray.jobs.connection import connected, handling
tell = lambda: print("told", flush=True)
with connected(RayConfig(cpus=1)), handling(lambda *_: None, signal.SIGTERM, before_exit=tell):
    print(ray._private.worker._global_node.all_processes["gcs_server"][0].process.pid, flush=True)
    while True:
        ray.nodes()
"""


def test_a_signal_ends_a_command_whose_ray_is_gone_though_its_main_thread_is_in_a_call_to_it() -> None:
    for _ in range(3):  # Ray's own start may take longer than it waits for on a busy machine
        command = subprocess.Popen(
            [sys.executable, "-c", BLOCKED],
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert command.stdout is not None
        first = command.stdout.readline().strip()
        if first.isdigit():
            break
        command.communicate()
    gcs = int(first)
    os.kill(gcs, signal.SIGSTOP)  # from now on each call waits, in C++
    time.sleep(1.0)
    os.killpg(command.pid, signal.SIGTERM)
    os.kill(gcs, signal.SIGKILL)
    output = command.communicate(timeout=300)[0]  # by itself Ray's client would abort the process after 60 seconds
    assert command.returncode == 128 + signal.SIGTERM, output
    assert output.splitlines()[-1] == "told"
