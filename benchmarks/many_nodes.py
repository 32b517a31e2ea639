"""Many small nodes on one machine: is any starved, and what does the driver pay as nodes grow?

Each logical node is a Ray node of its own (a raylet with one slot in the place of a GPU), so that scheduling, placement
and object transfer are Ray's own; only the work is a stand-in that sleeps. On each number of nodes the zoo's own loop
gives out batches of members and the search's own runner gives out trials. Work begins when every node's process is up
(so many Pythons start slowly on few cores). Recorded: how evenly the nodes worked, how long a node waits for its next
work, the driver's CPU time for one assignment, its memory.

    python benchmarks/many_nodes.py --nodes 2 4 8 16 24
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_AUTH_MODE"] = "token"

import ray
from common.driver_clock import Clock, NoTracking
from common.lines import rising_line
from common.markdown import table
from common.memory import free_mib, peak_mib
from common.processes import apart
from common.ray_cluster import local_cluster
from common.results import write
from common.sleeping import START_SECONDS, SleepingTrainer, SleepingTraining, spread

from kt_ray.config import ActorConfig, DatasetConfig, MemberCounts, StudyConfig, ZooConfig
from kt_ray.data import Dataset, load_dataset
from kt_ray.networks import PaperArchitecture
from kt_ray.search.runner import run_search
from kt_ray.studies.workspace import Workspace
from kt_ray.translation.task import TranslatorTask
from kt_ray.zoo import actors
from kt_ray.zoo.store import ZooStore
from kt_ray.zoo.untrained import untrained_zoo

BATCHES_A_NODE = 6
TRIALS_A_NODE = 4
GPUS = 1000  # the projection's
OBJECT_STORE = 80_000_000  # bytes a node
GIB_A_NODE = 0.75  # a raylet, its agents, an actor that has imported torch; asked of the machine before it starts

ASSUMPTIONS = (
    "the driver's CPU time for one assignment, and its memory, grow along a straight line with the nodes",
    "one GPU a node, one actor or trial a GPU",
    "the driver's CPU is the limit: network, shared file system, PostgreSQL and MLflow keep up",
    "Ray's head schedules a thousand nodes as its own published tests say; that is not measured here",
    "results as large as real ones (two members a batch, one report an epoch), work that takes no CPU",
)


def measure_zoo(nodes: int, root: Path, dataset: Dataset) -> dict[str, Any]:
    """The zoo's loop over `nodes` actors, one a node."""
    members = 2 * nodes * BATCHES_A_NODE
    counts = MemberCounts(train=members - 2, selection=1, test=1)
    config = ZooConfig(members=counts, actors=ActorConfig(cpus=1, resources={"slot": 1}, members_at_once=2))
    clock, batches = Clock(), root / "batches"
    batches.mkdir()

    class Trainer(SleepingTrainer):  # travels to the nodes with what it has to know
        folder, count = batches, nodes

    actors.Trainer = Trainer  # type: ignore[misc]
    zoo = actors.build_zoo(config, "basic_to_simple", dataset, ZooStore(str(root / "zoo")), clock.tick)
    assert len(zoo) == members
    return spread(batches, nodes) | {"driver_cpu_ms": clock.ms}


def measure_search(nodes: int, root: Path, dataset: Dataset) -> dict[str, Any]:
    """The search's runner over `nodes` trials at once, one a node."""
    search = {"trials": nodes * TRIALS_A_NODE, "sampler": {"name": "random"}, "pruner": {"name": "none"}}
    search["resources"] = {"cpus": 1, "resources": {"slot": 1}}
    space = {"training.learning_rate": {"float": [1e-4, 1e-1], "log": True}}
    config = StudyConfig.model_validate({"name": "many", "space": space, "search": search})
    zoo = untrained_zoo(PaperArchitecture("basic_to_simple"), MemberCounts(train=8, selection=2, test=2))
    clock, folder = Clock(), root / "trials"
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
    node = {"num_cpus": 2, "resources": {"slot": 1}, "object_store_memory": OBJECT_STORE}
    with local_cluster(*[node] * nodes, head=head, timeout=START_SECONDS) as cluster:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        started = time.monotonic() - began
        with tempfile.TemporaryDirectory(prefix="many-nodes-") as root:
            zoo, search = (part(nodes, Path(root), dataset) for part in (measure_zoo, measure_search))
        ray.shutdown()
        row = {"nodes": nodes, "start_seconds": started, "load_average": os.getloadavg()[0], "driver_mib": peak_mib()}
        return row | {"zoo": zoo, "search": search}


def project(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the lines through the measurements say of 1,000 GPUs, one a node."""
    batch = rising_line([(row["nodes"], row["zoo"]["driver_cpu_ms"]) for row in rows], GPUS)
    report = rising_line([(row["nodes"], row["search"]["driver_cpu_ms"]) for row in rows], GPUS)
    return {
        "gpus": GPUS,
        "driver_mib": rising_line([(row["nodes"], row["driver_mib"]) for row in rows], GPUS),
        "zoo_driver_ms_per_batch": batch,
        "search_driver_ms_per_report": report,
        # The driver is one thread: a thousand GPUs are fed as long as each asks more seldom than this.
        "shortest_batch_seconds": GPUS * batch / 1000,
        "shortest_epoch_seconds": GPUS * report / 1000,
        "assumptions": ASSUMPTIONS,
    }


def text_of(rows: Sequence[dict[str, Any]], projection: Mapping[str, Any], failure: str | None) -> str:
    """Return the table, and what was projected, as Markdown."""
    kinds = {"zoo": ("batches", "batch"), "search": ("trials", "report")}
    lines = []
    for row in rows:
        cells: dict[str, Any] = {"nodes": row["nodes"]}
        for part, (pieces, assigned) in kinds.items():
            found = row[part]
            waits = f"{found['wait_median_seconds']:.2f} s, {found['wait_most_seconds']:.2f} s"
            cells[f"{pieces} a node (fewest–most)"] = f"{found['fewest_a_node']}–{found['most_a_node']}"
            cells[f"a node waits for its next {part} work (median, most)"] = waits
            cells[f"driver CPU a {assigned}"] = f"{found['driver_cpu_ms']:.1f} ms"
        lines.append(cells | {"driver memory": f"{row['driver_mib']:.0f} MiB"})
    loads = ", ".join(format(row["load_average"], ".0f") for row in rows)
    text = [
        table(lines),
        f"Load averages were {loads}: other work and the start of so many processes share the cores with the driver, "
        "and lengthen the waits.",
        f"Projected to {projection['gpus']} GPUs: {projection['driver_mib']:.0f} MiB of driver memory, "
        f"{projection['zoo_driver_ms_per_batch']:.1f} ms a batch, "
        f"{projection['search_driver_ms_per_report']:.1f} ms a report; one driver feeds them while a batch takes "
        f"{projection['shortest_batch_seconds']:.0f} s or more and an epoch "
        f"{projection['shortest_epoch_seconds']:.0f} s or more. Assumed: " + "; ".join(projection["assumptions"]) + ".",
        *([f"This machine ran at most {rows[-1]['nodes']} nodes: {failure}."] if failure else []),
    ]
    return "\n\n".join(text)


def measured_apart(nodes: int) -> dict[str, Any] | str:
    """Measure `nodes` nodes in a process of its own; return why if this machine cannot."""
    free = free_mib() / 1024
    if free < nodes * GIB_A_NODE:
        return f"{nodes} nodes need some {nodes * GIB_A_NODE:.0f} GiB, and {free:.0f} GiB were free"
    try:
        return apart(measure, nodes)
    except Exception as error:  # whatever this machine runs out of
        return f"{nodes} nodes: {type(error).__name__}: {error}"


def main() -> None:
    """Measure each number of nodes, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4, 8, 16, 24])
    rows: list[dict[str, Any]] = []
    failure = None
    for nodes in parser.parse_args().nodes:
        row = measured_apart(nodes)
        print(json.dumps(row), flush=True)
        if isinstance(row, str):
            failure = row
            break
        rows.append(row)
    if len(rows) < 2:
        sys.exit("a projection needs two numbers of nodes")
    projection, last = project(rows), rows[-1]
    headline = {
        "nodes": last["nodes"],
        "starved_nodes": sum(min(row[part]["fewest_a_node"] for part in ("zoo", "search")) == 0 for row in rows),
        "zoo_driver_ms_per_batch": last["zoo"]["driver_cpu_ms"],
        "search_driver_ms_per_report": last["search"]["driver_cpu_ms"],
        "driver_mib": last["driver_mib"],
        "shortest_batch_seconds_1000_gpus": projection["shortest_batch_seconds"],
        "shortest_epoch_seconds_1000_gpus": projection["shortest_epoch_seconds"],
    }
    written = text_of(rows, projection, failure)
    results = {"rows": rows, "projection": projection, "more_nodes_failed": failure}
    write("many_nodes", headline, results, [0], written)
    print(written)


if __name__ == "__main__":
    main()
