"""Stand-ins that sleep in the place of a zoo's and a trial's training, and leave word of when and on which node."""

from __future__ import annotations

import itertools
import json
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from common.stand_in import StandIn
from kt_ray.config import MemberCounts, TrialConfig
from kt_ray.zoo.members import Member
from kt_ray.zoo.training.trainer import Trained, Trainer
from kt_ray.zoo.untrained import untrained_zoo

BATCH_SECONDS = 4.0  # a stand-in batch; a real one takes minutes, so that a driver has more time than here
EPOCH_SECONDS, EPOCHS = 1.0, 4
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


class SleepingTrainer(Trainer):
    """In the place of the zoo's actor: members of untrained parameters after a while."""

    folder: Path
    count: int

    def measure(self, candidate: Any, phase: str) -> float:
        """Nothing is tried out."""
        return 1.0

    def train(self, members: Sequence[Member], plan: Any) -> Trained:
        """As `Trainer.train`."""
        gather(self.folder, self.count)
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
