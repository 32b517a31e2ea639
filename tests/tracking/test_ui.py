from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import requests

from kt_ray.errors import TrackingError
from kt_ray.studies.workspace import Workspace
from kt_ray.tracking.store import StoreAway, probe
from kt_ray.tracking.ui import serve
from tests.tracking.servers import free_port


@pytest.fixture
def workspace(store_uri: str, tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path)


@pytest.mark.slow
def test_the_ui_of_a_workspace_ends_with_the_command(workspace: Workspace) -> None:
    port = free_port()
    program = (
        "from kt_ray.tracking.ui import serve\n"
        f"serve({workspace.tracking_uri!r}, {workspace.artifact_root!r}, port={port}, "
        "announce=lambda line: print(line, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as command:
        try:
            assert command.stdout is not None
            assert f"http://127.0.0.1:{port}" in command.stdout.readline()
            assert "<title>MLflow</title>" in requests.get(f"http://127.0.0.1:{port}/", timeout=300).text
        finally:
            command.send_signal(signal.SIGTERM)
        assert command.wait(300) == 0
    with pytest.raises(StoreAway, match="connection failed"):
        probe(f"http://127.0.0.1:{port}")


@pytest.mark.slow
def test_a_server_does_not_outlive_a_command_that_ends_while_it_starts(workspace: Workspace) -> None:
    command = [sys.executable, "-m", "kt_ray", "ui", "--workspace", str(workspace.root), "--port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not (servers := psutil.Process(process.pid).children(recursive=True)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait(300)
    _, left = psutil.wait_procs(servers, timeout=300)
    assert left == []


def test_a_port_in_use_is_named(workspace: Workspace) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TrackingError, match=rf"port {port} of 127.0.0.1 cannot be used \(.*\); name another"):
            serve(workspace.tracking_uri, workspace.artifact_root, port=port)


def test_a_tracking_server_has_its_own_ui(server: str, tmp_path: Path) -> None:
    said: list[str] = []
    assert serve(server, None, announce=said.append) == 0
    assert said == [f"the tracking server has its own UI: {server}"]
