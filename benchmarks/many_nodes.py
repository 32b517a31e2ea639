"""Many small nodes on one machine: is any starved, and what does the driver pay as nodes grow?

Each logical node is a Ray node of its own (a raylet with one logical GPU), so that scheduling, placement and object
transfer are Ray's own; only the work is a stand-in that sleeps. On each number of nodes the zoo's own loop gives out
batches of members and the search's own runner gives out trials. Recorded: how evenly the nodes worked, the driver's CPU
time for one assignment, its memory, and how busy the nodes were kept.

    python benchmarks/many_nodes.py --nodes 2 4 8 16 24
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import logging
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_AUTH_MODE"] = "token"

import pyarrow as pa
import ray
from ray._private import ray_constants
from ray.cluster_utils import Cluster

from kt_ray.config import ActorConfig, DatasetConfig, MemberCounts, StudyConfig, TrialConfig, ZooConfig
from kt_ray.data import Dataset, load_dataset
from kt_ray.networks import Architecture
from kt_ray.search.runner import run_search
from kt_ray.workspace import Workspace
from kt_ray.zoo import actors
from kt_ray.zoo.members import Member
from kt_ray.zoo.store import ZooStore
from kt_ray.zoo.untrained import untrained_zoo

RESULTS = Path(__file__).parent / "results"
BATCH_SECONDS = 4.0  # a stand-in batch; a real one takes minutes, so that a driver has more time than here
BATCHES_A_NODE = 5
EPOCH_SECONDS = 1.0
EPOCHS = 4
TRIALS_A_NODE = 3
GPUS = 1000  # the projection's


class SleepingTrainer(actors.Trainer):
    """In the place of the zoo's actor: members of untrained parameters after a while, and the node they come from."""

    def measure(self, candidate: Any, phase: str) -> float:
        """Nothing is tried out."""
        return 1.0

    def train(self, members: Sequence[Member], plan: Any) -> actors.Trained:
        """As `kt_ray.zoo.actors.Trainer.train`."""
        time.sleep(BATCH_SECONDS)
        counts = {"train": 0, "selection": 0, "test": 0} | Counter(member.split for member in members)
        zoo = untrained_zoo(self.architecture, MemberCounts.model_construct(**counts))
        index = zoo.index
        for name in ("id", "seed", "split"):
            column = pa.array([getattr(member, name) for member in members], index.schema.field(name).type)
            index = index.set_column(index.schema.get_field_index(name), name, column)
        node = ray.get_runtime_context().get_node_id()
        index = index.append_column("node", pa.array([node] * len(members)))
        return {name: value.numpy() for name, value in zoo.parameters.items()}, index


class SleepingTraining:
    """In the place of a translator's training: epochs that sleep; at its end a file in `seen` names its node."""

    def __init__(self, seen: Path, config: TrialConfig, zoo: Any, dataset: Any, device: str) -> None:
        self.seen = seen
        self.epoch = 0
        self.learning_rate = config.training.learning_rate

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= EPOCHS

    def run_epoch(self) -> dict[str, float]:
        """Sleep."""
        time.sleep(EPOCH_SECONDS)
        self.epoch += 1
        if self.finished:
            (self.seen / uuid.uuid4().hex).write_text(ray.get_runtime_context().get_node_id())
        return {"accuracy_mean": self.learning_rate * self.epoch, "loss": 0.0}

    def save(self, path: Path) -> None:
        """Write how far it is."""
        path.write_text(str(self.epoch))

    def load(self, path: Path) -> None:
        """Read how far it was."""
        self.epoch = int(path.read_text())


class NoTracking:
    """A tracker that keeps nothing: MLflow's cost is measured in another benchmark."""

    def study_run(self, study: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
        """A run."""
        return "study"

    def trial_run(self, study_run_id: str, study: str, lineage: int, params: Any, tags: Any) -> str:
        """A run."""
        return f"trial-{lineage}"

    def log(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def finish(self, run_id: str, status: Any, tags: Mapping[str, Any] | None = None) -> None:
        """Nothing."""


class Meter:
    """Wall time and CPU time of the driver over a stretch."""

    def __enter__(self) -> Meter:
        self._wall, self._cpu = time.monotonic(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.monotonic() - self._wall, time.process_time() - self._cpu


def share(counts: Mapping[str, int], nodes: int) -> dict[str, int]:
    """The fewest and the most that a node did; 0 for one that did nothing."""
    values = [*counts.values(), *[0] * (nodes - len(counts))]
    return {"fewest": min(values), "most": max(values)}


def measure_zoo(nodes: int, root: Path, dataset: Dataset) -> dict[str, Any]:
    """The zoo's loop over `nodes` actors, one a node."""
    members = 2 * nodes * BATCHES_A_NODE
    counts = MemberCounts(train=members - 2, selection=1, test=1)
    config = ZooConfig(members=counts, actors=ActorConfig(cpus=1, gpus=1, members_at_once=2))
    store = ZooStore(str(root / "zoo"))
    starts: list[float] = []
    with Meter() as meter:
        actors.build_zoo(config, "basic_to_simple", dataset, store, lambda progress: starts.append(time.monotonic()))
    done = Counter(store.index()["node"].to_pylist())
    assignments = nodes * BATCHES_A_NODE
    steady = starts[-1] - starts[0]
    return {
        "assignments": assignments,
        "members_a_node": share(done, nodes),
        "driver_cpu_ms_per_assignment": 1000 * meter.cpu / assignments,
        "busy": (assignments - 1) * BATCH_SECONDS / nodes / steady if steady else None,
        "wall_seconds": meter.wall,
    }


def measure_search(nodes: int, root: Path, dataset: Dataset) -> dict[str, Any]:
    """The search's runner over `nodes` trials at once, one a node."""
    trials = nodes * TRIALS_A_NODE
    config = StudyConfig.model_validate(
        {
            "name": "many", "space": {"training.learning_rate": {"float": [1e-4, 1e-1], "log": True}},
            "search": {"trials": trials, "sampler": {"name": "random"}, "pruner": {"name": "none"},
                       "resources": {"cpus": 1, "resources": {"slot": 1}}},
        }
    )  # fmt: skip
    workspace = Workspace.open(root / "workspace")
    zoo = untrained_zoo(Architecture("basic_to_simple"), MemberCounts(train=8, selection=2, test=2))
    seen = root / "seen"
    seen.mkdir()
    with Meter() as meter:
        make = functools.partial(SleepingTraining, seen)
        result = run_search(config, workspace, zoo, dataset, NoTracking(), make_training=make)
    assert result.stopped is None
    done = Counter(file.read_text() for file in seen.iterdir())
    assert sum(done.values()) == trials
    return {
        "assignments": trials,
        "trials_a_node": share(done, nodes),
        "driver_cpu_ms_per_assignment": 1000 * meter.cpu / trials,
        "driver_cpu_ms_per_report": 1000 * meter.cpu / (trials * EPOCHS),
        "busy": trials * EPOCHS * EPOCH_SECONDS / nodes / meter.wall,
        "wall_seconds": meter.wall,
    }


def measure(nodes: int) -> dict[str, Any]:
    """Both on a cluster of `nodes`, in this process."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray_constants.ENABLE_RAY_CLUSTER = False  # loopback only
    dataset = load_dataset(DatasetConfig(name="mnist5k", train_images=100, selection_images=50))
    began = time.monotonic()
    store = 80_000_000
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": store, "include_dashboard": False}
    )
    for _ in range(nodes):
        cluster.add_node(num_cpus=2, num_gpus=1, resources={"slot": 1}, object_store_memory=store, wait=False)
    cluster.wait_for_nodes()
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        started = time.monotonic() - began
        actors.Trainer = SleepingTrainer  # type: ignore[assignment, misc]
        with tempfile.TemporaryDirectory(prefix="many-nodes-") as root:
            zoo = measure_zoo(nodes, Path(root), dataset)
            search = measure_search(nodes, Path(root), dataset)
        return {
            "nodes": nodes,
            "start_seconds": started,
            "driver_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "zoo": zoo,
            "search": search,
        }
    finally:
        ray.shutdown()
        cluster.shutdown()


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares line through the points: value at 0, rise a unit."""
    line = statistics.linear_regression(*zip(*points, strict=True))
    return line.intercept, line.slope


def project(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the lines through the measurements say of 1,000 GPUs, one a node."""
    at = {}
    for name, value in {
        "driver_mib": lambda row: row["driver_mib"],
        "zoo_ms": lambda row: row["zoo"]["driver_cpu_ms_per_assignment"],
        "report_ms": lambda row: row["search"]["driver_cpu_ms_per_report"],
    }.items():
        start, rise = slope([(row["nodes"], value(row)) for row in rows])
        at[name] = max(start + rise * GPUS, rows[-1][name] if name in rows[-1] else value(rows[-1]))
    return {
        "gpus": GPUS,
        "driver_mib": at["driver_mib"],
        "zoo_driver_ms_per_assignment": at["zoo_ms"],
        "search_driver_ms_per_report": at["report_ms"],
        # The driver is one thread: a thousand GPUs are fed as long as each asks more seldom than this.
        "shortest_batch_seconds": GPUS * at["zoo_ms"] / 1000,
        "shortest_epoch_seconds": GPUS * at["report_ms"] / 1000,
        "assumptions": [
            "driver time and memory grow along a straight line, measured over nodes with one GPU each",
            "the driver's CPU is the limit: network, shared file system, PostgreSQL and MLflow keep up",
            "scheduling by Ray's head costs what Ray's own scale tests say, for it is not seen here",
            "stand-in work: results as large as real ones (two members a batch), no time on a device",
        ],
    }


def table(rows: Sequence[dict[str, Any]], projection: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| nodes | members a node (fewest–most) | trials a node | zoo: driver ms an assignment "
        "| search: driver ms a report | zoo nodes busy | driver MiB |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        zoo, search = row["zoo"], row["search"]
        lines.append(
            f"| {row['nodes']} | {zoo['members_a_node']['fewest']}–{zoo['members_a_node']['most']} "
            f"| {search['trials_a_node']['fewest']}–{search['trials_a_node']['most']} "
            f"| {zoo['driver_cpu_ms_per_assignment']:.1f} | {search['driver_cpu_ms_per_report']:.1f} "
            f"| {100 * zoo['busy']:.0f} % | {row['driver_mib']:.0f} |"
        )
    lines += [
        "",
        f"Projected to {projection['gpus']} GPUs: {projection['driver_mib']:.0f} MiB of driver memory, "
        f"{projection['zoo_driver_ms_per_assignment']:.1f} ms a batch, "
        f"{projection['search_driver_ms_per_report']:.1f} ms a report; one driver feeds them while a batch takes "
        f"{projection['shortest_batch_seconds']:.0f} s or more and an epoch "
        f"{projection['shortest_epoch_seconds']:.0f} s or more. Assumed: " + "; ".join(projection["assumptions"]) + ".",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure each number of nodes in a process of its own, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4, 8, 16, 24])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # what a process of its own is told
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    import subprocess

    rows = []
    for nodes in options.nodes:
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(nodes)], capture_output=True, text=True, timeout=900
        )
        if done.returncode:
            sys.exit(done.stderr)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    projection = project(rows)
    last = rows[-1]
    content = {
        "headline": {
            "nodes": last["nodes"],
            "starved_nodes": sum(
                row["zoo"]["members_a_node"]["fewest"] == 0 or row["search"]["trials_a_node"]["fewest"] == 0
                for row in rows
            ),
            "zoo_driver_ms_per_assignment": last["zoo"]["driver_cpu_ms_per_assignment"],
            "search_driver_ms_per_report": last["search"]["driver_cpu_ms_per_report"],
            "driver_mib": last["driver_mib"],
            "shortest_batch_seconds_1000_gpus": projection["shortest_batch_seconds"],
        },
        "results": {"rows": rows, "projection": projection},
        "machine": {
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "load_average": [round(load, 1) for load in os.getloadavg()],
        },
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("kt_ray", "ray", "torch", "optuna")},
        "command": f"python benchmarks/many_nodes.py --nodes {' '.join(map(str, options.nodes))}",
        "seeds": [0],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "many_nodes.json").write_text(json.dumps(content, indent=2) + "\n")
    written = table(rows, projection)
    (RESULTS / "many_nodes.md").write_text(f"{written}\n\n`{content['command']}`, {content['date']}\n")
    print(written)


if __name__ == "__main__":
    main()
