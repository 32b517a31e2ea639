"""Ask every node of a cluster whether a study can run there: versions that agree, storages, GPUs that work."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kt_ray.config import RayConfig
from kt_ray.errors import ResourceError
from kt_ray.jobs.connection import connected
from kt_ray.jobs.job import follow
from kt_ray.studies import node_probes as probes
from kt_ray.studies.permission import Permission
from kt_ray.studies.study_file import read_study_file
from kt_ray.studies.submission import submit
from kt_ray.studies.workspace import Workspace

SECONDS = 120.0  # a node that has not answered by then is reported as one that does not
GPU_SECONDS = 30.0  # after that, for a worker that must wait for a GPU
SHARE = 0.01  # of a GPU, for a worker that tries it
RESULT = "kt_ray cluster check: "


@dataclass(frozen=True)
class NodeCheck:
    """The answer of one node."""

    node: str
    resources: dict[str, float]
    versions: dict[str, str]
    problems: list[str]
    gpu: str = ""


@dataclass(frozen=True)
class ClusterCheck:
    """The answers of all nodes; `problems` has one line for each thing to mend, over the whole cluster."""

    nodes: list[NodeCheck]
    problems: list[str]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row a node, all of the same keys: amounts of resources, versions, what its GPU is."""
        names = dict.fromkeys(name for node in self.nodes for name in [*node.resources, *node.versions])
        return [
            {"node": node.node, **dict.fromkeys(names), **node.resources, **node.versions, "gpu": node.gpu}
            for node in self.nodes
        ]


def check_cluster(
    file: Path,
    address: str,
    *,
    workspace: str | None = None,
    overrides: Sequence[str] = (),
    code: bool = True,
    python: str = "python",
    permission: Permission | None = None,
) -> ClusterCheck:
    """Check the cluster at `address` for the study file `file`.

    `address` is `auto` or `host:port` as `ray.init` takes it, from a machine of the cluster; or the `http://…` of its
    job server, from anywhere: the check then runs there as a job. Other arguments are those of `submit`.
    Raises ResourceError if the cluster does not answer, ConfigError for a wrong study file.
    """
    config = read_study_file(file, overrides, permission=permission)
    if not address.startswith(("http://", "https://")):
        with connected(RayConfig(address=address)):
            return check_nodes(storages_of(Workspace.open(workspace, config.storage)))
    printed: list[str] = []
    job = submit(
        file,
        address,
        workspace=workspace,
        overrides=overrides,
        code=code,
        python=python,
        command="check",
        permission=permission,
    )
    ended = follow(job, address, printed.append)
    for line in "".join(printed).splitlines():
        if line.startswith(RESULT):
            found = json.loads(line.removeprefix(RESULT))
            return ClusterCheck([NodeCheck(**node) for node in found["nodes"]], found["problems"])
    tail = "".join(printed).strip().splitlines()[-1:] or [ended.message]
    raise ResourceError(f"the check as job {job} of {address} ended {ended.status} without a result: {tail[0]}")


def check_nodes(storages: Mapping[str, str]) -> ClusterCheck:
    """Ask each living node. Ray is initialised; this process is where the driver of a study would run.

    `storages` (name to path or URI) is what every node must reach. On a node with GPUs, a worker that is given a share
    of one uses it; if none is free, that is no problem.
    """
    marker = f"{probes.PROBE}{secrets.token_hex(8)}"
    marked = probes.mark(storages, marker)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        directories = {str(file.parent) for file in marked}
        answers = [_on(node, _ask, 0.0, storages, directories, marker, _gpus(node)) for node in nodes]
        on_gpus = {node["NodeID"]: _on(node, probes.use_gpu, SHARE, SHARE) for node in nodes if _gpus(node)}
        ray.wait(answers, num_returns=len(answers), timeout=SECONDS)
        if on_gpus:
            ray.wait(list(on_gpus.values()), num_returns=len(on_gpus), timeout=GPU_SECONDS)
        checks = [
            _node_check(node, answer, on_gpus.get(node["NodeID"])) for node, answer in zip(nodes, answers, strict=True)
        ]
        for answer in on_gpus.values():
            ray.cancel(answer, force=True)
    finally:
        for file in marked:
            file.unlink(missing_ok=True)
    return ClusterCheck(checks, _disagreements(checks) + [f"{c.node}: {p}" for c in checks for p in c.problems])


def _gpus(node: Mapping[str, Any]) -> float:
    return float(node["Resources"].get("GPU", 0.0))


def _on(node: Mapping[str, Any], function: Callable[..., Any], gpus: float, *args: Any) -> ray.ObjectRef[Any]:
    """Call `function` in a worker on `node` that is given `gpus`."""
    place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "num_gpus": gpus, "max_retries": 0, "scheduling_strategy": place}
    answer: ray.ObjectRef[Any] = ray.remote(**options)(function).remote(*args)
    return answer


def storages_of(workspace: Workspace) -> dict[str, str]:
    """Return the storages that every node must reach, by name; SQLite files are the driver's alone."""
    found = {
        "workspace": str(workspace.root),
        "zoos": workspace.storage.zoos,
        "checkpoints": workspace.storage.checkpoints,
        "study": workspace.study_storage,
        "tracking": workspace.tracking_uri,
        "artifacts": workspace.storage.artifacts,
    }
    return {
        name: place.removeprefix("file://")
        for name, place in found.items()
        if place and not place.startswith("sqlite:")
    }


def _ask(storages: Mapping[str, str], shared: set[str], marker: str, gpus: float) -> tuple[dict[str, str], list[str]]:
    return probes.versions(), probes.problems(storages, shared, marker) + probes.gpu_problems(gpus)


def _node_check(node: Mapping[str, Any], answer: ray.ObjectRef[Any], on_gpu: ray.ObjectRef[Any] | None) -> NodeCheck:
    name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
    resources = {key: amount for key, amount in node["Resources"].items() if ":" not in key}
    try:
        versions, problems = ray.get(answer, timeout=0)
    except ray.exceptions.GetTimeoutError:
        versions, problems = {}, [f"did not answer within {SECONDS:g} s"]
    except ray.exceptions.RayError as error:
        versions, problems = {}, [f"failed: {_last_line(error)}"]
    gpu = ""
    if on_gpu is not None and not problems:
        try:
            gpu = ray.get(on_gpu, timeout=0)
        except ray.exceptions.GetTimeoutError:
            gpu = f"not looked at: no worker was given a share of a GPU within {GPU_SECONDS:g} s; others may hold all"
        except ray.exceptions.RayError as error:
            problems = [f"a worker cannot use its GPU: {_last_line(error)}"]
    return NodeCheck(name, resources, versions, problems, gpu)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _disagreements(checks: Sequence[NodeCheck]) -> list[str]:
    found = []
    for package in probes.AGREE:
        by_version: dict[str, list[str]] = {}
        for check in checks:
            if package in check.versions:
                by_version.setdefault(check.versions[package], []).append(check.node)
        if len(by_version) > 1:
            listed = "; ".join(f"{version} on {', '.join(nodes)}" for version, nodes in sorted(by_version.items()))
            found.append(f"{package} differs between nodes: {listed}; install one version everywhere")
    return found
