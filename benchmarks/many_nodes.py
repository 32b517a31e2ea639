"""Many small nodes on one machine: is any starved, and what does the driver pay as nodes grow?

Each logical node is a Ray node of its own (a raylet with one logical GPU), so that scheduling, placement and object
transfer are Ray's own; only the work is a stand-in that sleeps. On each number of nodes the zoo's own loop gives out
batches of members and the search's own runner gives out trials. Work begins when every node's process is up (so many
Pythons start slowly on few cores). Recorded: how evenly the nodes worked, how long a node waits for its next work, the
driver's CPU time for one assignment, its memory.

    python benchmarks/many_nodes.py --nodes 2 4 8 16 24
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_AUTH_MODE"] = "token"

import numpy as np
import pyarrow as pa
import ray
from common.memory import free_mib, peak_mib
from common.ray_cluster import local_cluster
from common.results import write
from common.stand_in import StandIn
from scipy.optimize import nnls

from kt_ray.config import ActorConfig, DatasetConfig, MemberCounts, StudyConfig, TrialConfig, ZooConfig
from kt_ray.data import Dataset, load_dataset
from kt_ray.networks import PaperArchitecture
from kt_ray.search.runner import run_search
from kt_ray.studies.workspace import Workspace
from kt_ray.translation.task import TranslatorTask
from kt_ray.zoo import actors
from kt_ray.zoo.members import Member
from kt_ray.zoo.store import ZooStore
from kt_ray.zoo.untrained import untrained_zoo

BATCH_SECONDS = 4.0  # a stand-in batch; a real one takes minutes, so that a driver has more time than here
BATCHES_A_NODE = 6
EPOCH_SECONDS = 1.0
EPOCHS = 4
TRIALS_A_NODE = 4
GPUS = 1000  # the projection's
OBJECT_STORE = 80_000_000  # bytes a node
GIB_A_NODE = 0.75  # a raylet, its agents, an actor that has imported torch; asked of the machine before it starts
START_SECONDS = 900.0  # until the processes of all nodes are up


def gather(folder: Path, nodes: int) -> None:
    """Wait until a process of each of `nodes` nodes has come here."""
    (folder / f"up-{ray.get_runtime_context().get_node_id()}").touch()
    deadline = time.monotonic() + START_SECONDS
    while sum(1 for _ in folder.glob("up-*")) < nodes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{nodes} processes within {START_SECONDS:g} s")
        time.sleep(0.2)


def stamp(folder: Path, began: float) -> None:
    """Leave word of a piece of work that began at `began` and has just ended on this node."""
    content = {"node": ray.get_runtime_context().get_node_id(), "began": began, "ended": time.time()}
    (folder / f"work-{uuid.uuid4().hex}").write_text(json.dumps(content))


class SleepingTrainer(actors.Trainer):
    """In the place of the zoo's actor: members of untrained parameters after a while."""

    folder: Path
    nodes: int

    def measure(self, candidate: Any, phase: str) -> float:
        """Nothing is tried out."""
        return 1.0

    def train(self, members: Sequence[Member], plan: Any) -> actors.Trained:
        """As `kt_ray.zoo.actors.Trainer.train`."""
        gather(self.folder, self.nodes)
        began = time.time()
        time.sleep(BATCH_SECONDS)
        counts = {"train": 0, "selection": 0, "test": 0} | Counter(member.split for member in members)
        zoo = untrained_zoo(self.architecture, MemberCounts.model_construct(**counts))
        index = zoo.index
        for name in ("id", "seed", "split"):
            column = pa.array([getattr(member, name) for member in members], index.schema.field(name).type)
            index = index.set_column(index.schema.get_field_index(name), name, column)
        stamp(self.folder, began)
        return {name: value.numpy() for name, value in zoo.parameters.items()}, index


class SleepingTraining(StandIn):
    """In the place of a translator's training: epochs that sleep."""

    epochs = EPOCHS

    def __init__(self, folder: Path, nodes: int, config: TrialConfig, zoo: Any, dataset: Any, *where: Any) -> None:
        super().__init__(config, zoo, dataset, *where)
        self.folder, self.nodes, self.began = folder, nodes, 0.0

    def run_epoch(self) -> dict[str, float]:
        """Sleep."""
        if self.epoch == 0:
            gather(self.folder, self.nodes)
            self.began = time.time()
        time.sleep(EPOCH_SECONDS)
        self.epoch += 1
        if self.finished:
            stamp(self.folder, self.began)
        return {"accuracy_mean": self.config.training.learning_rate * self.epoch, "loss": 0.0}


class Clock:
    """The driver's CPU time at each of its events. The first one ends the start, which is not of interest."""

    def __init__(self) -> None:
        self.cpu: list[float] = []

    def tick(self, *_: object) -> None:
        """An event."""
        self.cpu.append(time.process_time())

    @property
    def ms(self) -> float:
        """Milliseconds of CPU time from one event to the next, in the mean."""
        return 1000 * (self.cpu[-1] - self.cpu[0]) / (len(self.cpu) - 1)


class NoTracking:
    """A tracker that keeps nothing, and ticks at each report: MLflow's cost is measured in another benchmark."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def study_run(self, study: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
        """A run."""
        return "study"

    def trial_run(self, study_run_id: str, study: str, lineage: int, params: Any, tags: Any) -> str:
        """A run."""
        return f"trial-{lineage}"

    def log(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """An event."""
        self.clock.tick()

    def finish(self, run_id: str, status: Any, tags: Mapping[str, Any] | None = None) -> None:
        """Nothing."""


def spread(folder: Path, nodes: int) -> dict[str, Any]:
    """How work lay on the nodes: pieces a node (fewest, most), seconds between two pieces, share of time at work."""
    work: dict[str, list[tuple[float, float]]] = {}
    for file in folder.glob("work-*"):
        entry = json.loads(file.read_text())
        work.setdefault(entry["node"], []).append((entry["began"], entry["ended"]))
    waits = []
    for pieces in work.values():
        pieces.sort()
        waits += [after - before for (_, before), (after, _) in itertools.pairwise(pieces)]
    every = [piece for pieces in work.values() for piece in pieces]
    wall = max(ended for _, ended in every) - min(began for began, _ in every)
    counts = [len(pieces) for pieces in work.values()] + [0] * (nodes - len(work))
    return {
        "pieces": len(every),
        "fewest_a_node": min(counts),
        "most_a_node": max(counts),
        "wait_median_seconds": statistics.median(waits),
        "wait_most_seconds": max(waits),
        "busy": sum(ended - began for began, ended in every) / (nodes * wall),
    }


def measure_zoo(nodes: int, root: Path, dataset: Dataset) -> dict[str, Any]:
    """The zoo's loop over `nodes` actors, one a node."""
    members = 2 * nodes * BATCHES_A_NODE
    counts = MemberCounts(train=members - 2, selection=1, test=1)
    config = ZooConfig(members=counts, actors=ActorConfig(cpus=1, gpus=1, members_at_once=2))
    clock = Clock()
    SleepingTrainer.folder, SleepingTrainer.nodes = root / "batches", nodes
    SleepingTrainer.folder.mkdir()
    zoo = actors.build_zoo(config, "basic_to_simple", dataset, ZooStore(str(root / "zoo")), clock.tick)
    assert len(zoo) == members
    return spread(SleepingTrainer.folder, nodes) | {"driver_cpu_ms": clock.ms}


def measure_search(nodes: int, root: Path, dataset: Dataset) -> dict[str, Any]:
    """The search's runner over `nodes` trials at once, one a node."""
    config = StudyConfig.model_validate(
        {
            "name": "many",
            "space": {"training.learning_rate": {"float": [1e-4, 1e-1], "log": True}},
            "search": {
                "trials": nodes * TRIALS_A_NODE,
                "sampler": {"name": "random"},
                "pruner": {"name": "none"},
                "resources": {"cpus": 1, "resources": {"slot": 1}},
            },
        }
    )
    zoo = untrained_zoo(PaperArchitecture("basic_to_simple"), MemberCounts(train=8, selection=2, test=2))
    clock = Clock()
    folder = root / "trials"
    folder.mkdir()
    task = TranslatorTask(zoo, dataset, functools.partial(SleepingTraining, folder, nodes))
    result = run_search(config, Workspace.open(root / "workspace"), task, NoTracking(clock))
    assert result.stopped is None
    return spread(folder, nodes) | {"driver_cpu_ms": clock.ms}


def measure(nodes: int) -> dict[str, Any]:
    """Both on a cluster of `nodes`, in this process."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    dataset = load_dataset(DatasetConfig(name="mnist5k", train_images=100, selection_images=50))
    began = time.monotonic()
    head = {"object_store_memory": OBJECT_STORE, "include_dashboard": False}
    node = {"num_cpus": 2, "num_gpus": 1, "resources": {"slot": 1}, "object_store_memory": OBJECT_STORE}
    with local_cluster(*[node] * nodes, head=head, timeout=START_SECONDS) as cluster:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        started = time.monotonic() - began
        actors.Trainer = SleepingTrainer  # type: ignore[assignment, misc]
        with tempfile.TemporaryDirectory(prefix="many-nodes-") as root:
            zoo = measure_zoo(nodes, Path(root), dataset)
            search = measure_search(nodes, Path(root), dataset)
        ray.shutdown()
        return {
            "nodes": nodes,
            "start_seconds": started,
            "load_average": os.getloadavg()[0],
            "driver_mib": peak_mib(),
            "zoo": zoo,
            "search": search,
        }


def line(points: Sequence[tuple[float, float]]) -> float:
    """The value at `GPUS` nodes of the straight line through the points that never falls (least squares)."""
    nodes, values = np.array(points, dtype=float).T
    (start, rise), _ = nnls(np.stack([np.ones_like(nodes), nodes], axis=1), values)
    return float(start + rise * GPUS)


def project(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the lines through the measurements say of 1,000 GPUs, one a node."""
    batch = line([(row["nodes"], row["zoo"]["driver_cpu_ms"]) for row in rows])
    report = line([(row["nodes"], row["search"]["driver_cpu_ms"]) for row in rows])
    return {
        "gpus": GPUS,
        "driver_mib": line([(row["nodes"], row["driver_mib"]) for row in rows]),
        "zoo_driver_ms_per_batch": batch,
        "search_driver_ms_per_report": report,
        # The driver is one thread: a thousand GPUs are fed as long as each asks more seldom than this.
        "shortest_batch_seconds": GPUS * batch / 1000,
        "shortest_epoch_seconds": GPUS * report / 1000,
        "assumptions": [
            "the driver's CPU time for one assignment, and its memory, grow along a straight line with the nodes",
            "one GPU a node, one actor or trial a GPU",
            "the driver's CPU is the limit: network, shared file system, PostgreSQL and MLflow keep up",
            "Ray's head schedules a thousand nodes as its own published tests say; that is not measured here",
            "results as large as real ones (two members a batch, one report an epoch), work that takes no CPU",
        ],
    }


def table(rows: Sequence[dict[str, Any]], projection: Mapping[str, Any], failure: str | None) -> str:
    """Markdown."""
    lines = [
        "| nodes | batches a node (fewest–most) | a node waits for its next batch (median, most) "
        "| driver CPU a batch | trials a node | waits for its next trial | driver CPU a report | driver memory |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [str(row["nodes"])]
        for part in (row["zoo"], row["search"]):
            cells += [
                f"{part['fewest_a_node']}–{part['most_a_node']}",
                f"{part['wait_median_seconds']:.2f} s, {part['wait_most_seconds']:.2f} s",
                f"{part['driver_cpu_ms']:.1f} ms",
            ]
        lines.append(f"| {' | '.join(cells)} | {row['driver_mib']:.0f} MiB |")
    lines += [
        "",
        f"Load averages were {', '.join(format(row['load_average'], '.0f') for row in rows)}: other work and the start "
        "of so many processes share the cores with the driver, and lengthen the waits.",
        "",
        f"Projected to {projection['gpus']} GPUs: {projection['driver_mib']:.0f} MiB of driver memory, "
        f"{projection['zoo_driver_ms_per_batch']:.1f} ms a batch, "
        f"{projection['search_driver_ms_per_report']:.1f} ms a report; one driver feeds them while a batch takes "
        f"{projection['shortest_batch_seconds']:.0f} s or more and an epoch "
        f"{projection['shortest_epoch_seconds']:.0f} s or more. Assumed: " + "; ".join(projection["assumptions"]) + ".",
    ]
    if failure:
        lines += ["", f"This machine ran at most {rows[-1]['nodes']} nodes: {failure}."]
    return "\n".join(lines)


def headline_of(rows: Sequence[dict[str, Any]], projection: Mapping[str, Any]) -> dict[str, float]:
    """Return the driver's costs at most nodes, the nodes that got no work, and the projection."""
    last = rows[-1]
    return {
        "nodes": last["nodes"],
        "starved_nodes": sum(min(row[part]["fewest_a_node"] for part in ("zoo", "search")) == 0 for row in rows),
        "zoo_driver_ms_per_batch": last["zoo"]["driver_cpu_ms"],
        "search_driver_ms_per_report": last["search"]["driver_cpu_ms"],
        "driver_mib": last["driver_mib"],
        "shortest_batch_seconds_1000_gpus": projection["shortest_batch_seconds"],
        "shortest_epoch_seconds_1000_gpus": projection["shortest_epoch_seconds"],
    }


def measured_apart(nodes: int) -> dict[str, Any] | str:
    """Measure `nodes` nodes in a process of its own; return why if this machine cannot."""
    free = free_mib() / 1024
    if free < nodes * GIB_A_NODE:
        return f"{nodes} nodes need some {nodes * GIB_A_NODE:.0f} GiB, and {free:.0f} GiB were free"
    done = subprocess.run([sys.executable, __file__, "--one", str(nodes)], capture_output=True, text=True, timeout=1800)
    if done.returncode:
        return f"{nodes} nodes: {done.stderr.strip().splitlines()[-1]}"
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    """Measure each number of nodes, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4, 8, 16, 24])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # what a process of its own is told
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    rows: list[dict[str, Any]] = []
    failure = None
    for nodes in options.nodes:
        row = measured_apart(nodes)
        print(json.dumps(row), flush=True)
        if isinstance(row, str):
            failure = row
            break
        rows.append(row)
    if len(rows) < 2:
        sys.exit("a projection needs two numbers of nodes")
    projection = project(rows)
    written = table(rows, projection, failure)
    results = {"rows": rows, "projection": projection, "more_nodes_failed": failure}
    write("many_nodes", headline_of(rows, projection), results, [0], written)
    print(written)


if __name__ == "__main__":
    main()
