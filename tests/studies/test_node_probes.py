"""A node says which GPU a worker of its computes on, and if Ray counts more GPUs than torch sees."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from kt_ray.errors import ResourceError
from kt_ray.studies import node_probes
from kt_ray.studies.cluster_check import ClusterCheck, NodeCheck, check_nodes
from kt_ray.studies.doctor import examine
from kt_ray.studies.node_probes import gpu_problems, problems, use_gpu
from kt_ray.studies.workspace import Workspace
from tests.devices.pretended import pretended_cuda


def test_a_node_without_gpus_is_not_asked() -> None:
    assert gpu_problems(0) == []


def test_gpus_that_torch_does_not_see_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as Ray sets it for a task without GPUs
    seen = torch.cuda.device_count()
    assert gpu_problems(seen) == []
    (line,) = gpu_problems(64)
    assert "Ray counts 64 GPUs" in line


def test_slices_of_gpus_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process sees one slice at most, however many Ray was started with."""
    monkeypatch.setattr(node_probes, "_visible_devices", lambda process: "MIG-1b2c,MIG-3d4e")
    assert gpu_problems(2) == []


def test_what_a_node_was_started_with_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    look = "import os; from kt_ray.studies.node_probes import _visible_devices as seen; print(seen(os.getppid()))"
    shell = f'{sys.executable} -c "{look}"; true'
    done = subprocess.run(
        ["sh", "-c", shell],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "2,3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "2,3"


def test_a_worker_with_a_gpu_says_what_it_computed_on() -> None:
    with pretended_cuda() as device:
        assert use_gpu(0.01).startswith("Pretended, CUDA ")
        assert device.launches


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_worker_with_a_gpu_that_torch_does_not_see_says_so() -> None:
    with pytest.raises(ResourceError, match="sees none"):
        use_gpu(0.01)


def test_every_node_answers(ray_session: None) -> None:
    found = check_nodes({})
    (node,) = found.nodes
    assert set(node.versions) == {"python", "ray", "torch", "kt_ray"}
    assert (found.problems, node.gpu) == ([], "")


def test_unlike_nodes_are_rows_of_one_table() -> None:
    head = NodeCheck("head", {"CPU": 2}, {"torch": "2"}, [])
    unlike = NodeCheck("worker", {"CPU": 8, "GPU": 1}, {}, [], "A100")
    assert ClusterCheck([head, unlike], []).rows() == [
        {"node": "head", "CPU": 2, "torch": "2", "GPU": None, "gpu": ""},
        {"node": "worker", "CPU": 8, "torch": None, "GPU": 1, "gpu": "A100"},
    ]


class Answering(BaseHTTPRequestHandler):
    """Answers every request with the server's `status` and `body`, and keeps who asked."""

    def do_POST(self) -> None:
        self.server.asked = self.headers["Authorization"]  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()
        self.wfile.write(self.server.body)  # type: ignore[attr-defined]

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (200, b"", None),
        (400, b'{"error_code": "RESOURCE_ALREADY_EXISTS"}', None),
        (401, b"", "wants a password"),
        (403, b"", "--allowed-hosts"),
        (500, b"broken", "answers 500: broken"),
    ],
)
def test_a_tracking_server_that_refuses_is_a_problem(
    status: int, body: bytes, fault: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pass")
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        server.status, server.body = status, body  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        found = problems({"tracking": f"http://127.0.0.1:{server.server_port}", "artifacts": str(tmp_path)})
        thread.join()
        assert server.asked == "Basic dXNlcjpwYXNz"  # type: ignore[attr-defined]
    assert len(found) == (fault is not None)
    assert fault is None or fault in found[0]


def test_doctor_asks_every_node(workspace: Path, ray_session: None) -> None:
    checks = {check.name.split()[0]: check for check in examine(Workspace.at(workspace), "auto")}
    assert checks["ray"].detail == "at auto: CPU 2"
    assert checks["node"].verdict == "ok"
    assert "CPU 2, python " in checks["node"].detail
    assert "cluster" not in checks
    assert not workspace.exists()


DOCTOR = """
import sys
from kt_ray.config import RayConfig
from kt_ray.jobs.connection import connected
from kt_ray.studies.doctor import examine
from kt_ray.studies.workspace import Workspace
from pathlib import Path

with connected(RayConfig(cpus=1, gpus=1)):
    for check in examine(Workspace.at(Path(sys.argv[1])), "auto"):
        if check.name.startswith(("ray", "node", "cluster")):
            print(check.verdict, check.name, check.detail)
"""


@pytest.mark.slow  # a Ray session of its own: the parts are tested above
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_doctor_asks_every_node_and_tells_of_gpus_that_only_ray_sees(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DOCTOR, str(tmp_path / "workspace")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    _, ray, node, cluster = done.stdout.splitlines()  # the first is the version of the package
    assert ray == "ok ray at auto: CPU 1, GPU 1"
    assert node.startswith("ok node ")
    assert "CPU 1, GPU 1, python " in node
    assert cluster.startswith("broken cluster ")
    assert "Ray counts 1 GPUs, torch " in cluster
    assert not (tmp_path / "workspace").exists()
