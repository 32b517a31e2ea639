"""Checks that run on one node: its versions, and whether it reaches and can write every storage."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

import requests

import kt_ray
from kt_ray._io.text import first_line
from kt_ray.errors import KTError
from kt_ray.jobs.device import open_device

SECONDS = 10.0
GPU_SECONDS = 60.0  # for a process that imports torch
PROBE = ".kt-ray-probe-"
AGREE = ("python", "ray", "torch", "kt_ray")


def versions() -> dict[str, str]:
    """Versions of what has to agree over a cluster; that of kt_ray with a digest of its source."""
    found = {"python": platform.python_version()}
    for package in ("ray", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found | {"kt_ray": f"{kt_ray.__version__}+{_source_digest()}"}


def gpu_problems(counted: float) -> list[str]:
    """Return a line if torch sees fewer GPUs on this node than the `counted` that Ray gives out.

    Another process looks, with what this node's Ray was started with: Ray hides the GPUs from a task that asked for
    none. A process sees one slice of a GPU (MIG) at most, so slices are not counted; a worker tries its own.
    """
    given = _visible_devices(os.getppid())
    if not counted or "MIG-" in (given or ""):
        return []
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    if given is not None:
        environment["CUDA_VISIBLE_DEVICES"] = given
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GPU_SECONDS, check=True, env=environment)
        seen = int(done.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return [f"Ray counts {counted:g} GPUs, and torch cannot say how many it sees: {first_line(error)}"]
    if seen >= counted:
        return []
    return [
        f"Ray counts {counted:g} GPUs, torch {version('torch')} sees {seen}: install a CUDA build of torch and a "
        "driver there, or start that node with fewer --num-gpus"
    ]


def _visible_devices(process: int) -> str | None:
    """Return CUDA_VISIBLE_DEVICES of a process, None if it has none or cannot be read."""
    try:
        pairs = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return dict(pair.partition("=")[::2] for pair in pairs).get("CUDA_VISIBLE_DEVICES")


def use_gpu(share: float) -> str:
    """Compute on the GPU of which Ray gave this worker a `share`; return what it is and which versions drive it.

    Raises ResourceError if torch sees none, and whatever CUDA raises.
    """
    import torch

    torch.ones(1, device=open_device(share)).sum().item()
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, driver {_driver()}"


def _driver() -> str:
    """Return the version of NVIDIA's driver."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    found = re.search(r"\d+\.\d+(\.\d+)?", text)
    return found[0] if found else "unknown"


def problems(storages: Mapping[str, str], shared: Set[str] = frozenset(), marker: str = "") -> list[str]:
    """One line for each of `storages` (name to path or URI) that this node cannot use.

    Into the directories `shared` the driver has written a file `marker`: a node that does not see it has a directory
    of its own in that place.
    """
    found = []
    for name, place in storages.items():
        if name == "artifacts" and "://" in place:
            continue  # MLflow's own libraries reach it
        try:
            fault = _probe(place, marker if place in shared else None)
        except KTError as error:
            fault = str(error)
        except Exception as error:
            fault = f"{type(error).__name__}: {first_line(error)}"
        if fault:
            found.append(f"{name} {place}: {fault}")
    return found + _artifact_problems(storages.get("tracking", ""), storages.get("artifacts"), found)


def _artifact_problems(tracking: str, root: str | None, found: Sequence[str]) -> list[str]:
    """One line where MLflow's artifacts cannot be kept at `root`, else where the server at `tracking` puts them."""
    from kt_ray.tracking.artifacts import probe_artifacts

    asked = root is not None and "://" in root
    given = root is None and tracking and not any(line.startswith("tracking ") for line in found)
    try:
        if asked or given:
            probe_artifacts(tracking, root)
    except KTError as error:
        return [str(error)]
    return []


def mark(storages: Mapping[str, str], marker: str) -> list[Path]:
    """Write `marker` into every directory of `storages` that can be written; the files written."""
    written = []
    for place in storages.values():
        if "://" not in place:
            with suppress(OSError):
                Path(place).mkdir(parents=True, exist_ok=True)
                file = Path(place) / marker
                file.touch()
                written.append(file)
    return written


def _probe(place: str, marker: str | None) -> str | None:
    """Return the fault of `place`; None if it has none. May raise whatever the store's own library raises."""
    scheme = urlsplit(place).scheme
    if scheme in ("http", "https"):
        return _probe_mlflow(place)
    if scheme.split("+")[0] in ("postgresql", "mysql"):
        return _probe_database(place)
    if "://" in place:
        return _probe_files(place)
    return _probe_directory(Path(place), marker)


def _probe_directory(directory: Path, marker: str | None) -> str | None:
    if marker is not None and not (directory / marker).exists():
        return "does not hold what the driver has just written there; expected a directory that all nodes share"
    file = directory / f"{PROBE}{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    file.write_bytes(b"probe")
    file.unlink()
    return None


def _probe_files(uri: str) -> str | None:
    from pyarrow.fs import FileSystem

    filesystem, root = FileSystem.from_uri(uri)
    path = f"{root.rstrip('/')}/{PROBE}{secrets.token_hex(8)}"
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"probe")
    with filesystem.open_input_stream(path) as stream:
        content = stream.read()
    filesystem.delete_file(path)
    return None if content == b"probe" else f"a file came back as {content!r}"


def _probe_database(url: str) -> str | None:
    from sqlalchemy import create_engine, text

    options = {"connect_timeout": int(SECONDS)}
    table = f"kt_ray_probe_{secrets.token_hex(4)}"
    engine = create_engine(url, connect_args=options)
    try:
        with engine.begin() as connection:
            connection.execute(text(f"CREATE TABLE {table} (probe INTEGER)"))
            connection.execute(text(f"DROP TABLE {table}"))
    finally:
        engine.dispose()
    return None


def _probe_mlflow(uri: str) -> str | None:
    """Try to create the experiment `Default`, which exists: a write that is authorised, reaches the store and fails."""
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    try:
        answer = requests.post(
            f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/create",
            json={"name": "Default"},
            auth=(user, password) if user and password else None,
            timeout=SECONDS,
        )
    except requests.RequestException as error:
        return f"does not answer ({first_line(error)})"
    if answer.ok or "RESOURCE_ALREADY_EXISTS" in answer.text:
        return None
    if answer.status_code == 401:
        return "wants a password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on every node"
    if answer.status_code == 403:
        return "refuses this host name or user (403); start the server with --allowed-hosts naming it"
    return f"answers {answer.status_code}: {answer.text[:200]}"


def _source_digest() -> str:
    """Eight digits of the SHA-256 over the package's source files."""
    root = Path(kt_ray.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:8]
