"""Checks of this machine and workspace, with advice for each that fails."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal, get_args

from kt_ray._io.text import first_line
from kt_ray.config import DatasetConfig, DatasetName, RayConfig
from kt_ray.errors import KTError
from kt_ray.studies.workspace import Workspace

Verdict = Literal["ok", "absent", "broken"]
PACKAGES = ("kt_ray", "torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow", "safetensors", "pydantic", "numpy")


@dataclass(frozen=True)
class Check:
    """One thing looked at. `absent` is no fault: a dataset that no one downloaded, a GPU that is not there."""

    name: str
    verdict: Verdict
    detail: str


def examine(workspace: Workspace, address: str | None = None) -> Iterator[Check]:
    """Look at versions, devices, Ray, stores and data, one `Check` after the other."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in PACKAGES:
        yield _attempt(package, lambda package=package: metadata.version(package))  # type: ignore[misc]
    yield Check("cpu", "ok", f"{os.cpu_count()} cores, {_torch_threads()} torch threads in this process")
    yield _cuda()
    yield from _ray(workspace, address or os.environ.get("RAY_ADDRESS"))
    if workspace.present:
        yield _attempt("workspace", lambda: str(Workspace.open(workspace.root, workspace.storage).root))
        yield _attempt("study storage", lambda: _study_storage(workspace))
        yield _attempt("tracking", lambda: _tracking(workspace))
    else:
        yield Check("workspace", "absent", f"none at {workspace.root}; the first `kt-ray run` makes it")
    for name in get_args(DatasetName):
        yield _dataset(name)


def _attempt(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", look())
    except KTError as error:
        return Check(name, "broken", str(error))
    except Exception as error:  # whatever is broken here is what the doctor is asked for
        return Check(name, "broken", f"{type(error).__name__}: {first_line(error)}")


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _cuda() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("cuda", "absent", "no CUDA device; everything runs on the CPU")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Check("cuda", "ok", ", ".join(names))


def _ray(workspace: Workspace, address: str | None) -> Iterator[Check]:
    """Ray; of the cluster at `address`, if one is given, each node too, which must reach the workspace's storages."""
    import ray

    from kt_ray.jobs.connection import connected
    from kt_ray.studies.cluster_check import check_nodes, storages_of

    try:
        with connected(RayConfig(address=address)):
            place = f"at {address}" if address else "starts here"
            yield Check("ray", "ok", f"{place}: {_amounts(ray.cluster_resources())}")  # type: ignore[no-untyped-call]
            if address:
                found = check_nodes(storages_of(workspace) if workspace.present else {})
                for node in found.nodes:
                    detail = [_amounts(node.resources), *map(" ".join, node.versions.items()), node.gpu]
                    yield Check(f"node {node.node}", "ok", ", ".join(filter(None, detail)))
                for problem in found.problems:
                    yield Check("cluster", "broken", problem)
    except KTError as error:
        yield Check("ray", "broken", str(error))


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {resources[name]:g}" for name in ("CPU", "GPU") if name in resources)


def _study_storage(workspace: Workspace) -> str:
    from kt_ray.search.storage import study_names

    names = study_names(workspace.study_storage)
    return f"{workspace.study_storage}: {len(names)} studies"


def _tracking(workspace: Workspace) -> str:
    from kt_ray._io.urls import redacted
    from kt_ray.tracking.store import check_tracking

    check_tracking(workspace.tracking_uri)
    return redacted(workspace.tracking_uri)


def _dataset(name: Any) -> Check:
    from kt_ray.data import load_dataset
    from kt_ray.data.standard import present

    if not present(name):
        return Check(f"dataset {name}", "absent", "not on this machine; the first use downloads it")
    return _attempt(f"dataset {name}", lambda: f"fingerprint {load_dataset(DatasetConfig(name=name)).fingerprint}")
