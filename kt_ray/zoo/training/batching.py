"""Members cut into batches for actors, and results gathered into shards of a sensible size."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import pyarrow as pa
import torch

from kt_ray.networks import AnyArchitecture, State, stacked
from kt_ray.zoo.definition import shapes_of
from kt_ray.zoo.members import Member
from kt_ray.zoo.store import ZooStore

SHARD_BYTES = 64 << 20
SHARD_SECONDS = 10.0  # what a driver that is killed may lose of finished work


def batches_of(members: list[Member], at_once: int, workers: int) -> list[list[Member]]:
    """`members` in order, at most `at_once` together, evenly, and in enough batches for all `workers`."""
    count = max(-(-len(members) // at_once), min(workers, len(members)))
    rounds = -(-count // workers)
    count = min(rounds * workers, len(members))
    edges = [round(i * len(members) / count) for i in range(count + 1)]
    return [members[low:high] for low, high in pairwise(edges)]


def bytes_of(architecture: AnyArchitecture) -> int:
    """Bytes of one row of a zoo."""
    return sum(torch.float32.itemsize * math.prod(shape) for shape in shapes_of(architecture).values())


class Buffer:
    """Results on their way to the store: written when they are many, or have waited long."""

    def __init__(self, store: ZooStore) -> None:
        self.store = store
        self.parts: list[tuple[State, pa.Table]] = []
        self.bytes = 0
        self.last = time.monotonic()

    def add(self, parameters: State, rows: pa.Table) -> None:
        """Take results in, and write if it is time."""
        self.parts.append((parameters, rows))
        self.bytes += sum(value.nbytes for value in parameters.values())
        if self.bytes >= SHARD_BYTES or time.monotonic() - self.last >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is there as one shard."""
        if not self.parts:
            return
        parameters = stacked.concatenate([parameters for parameters, _ in self.parts])
        rows = pa.concat_tables([rows for _, rows in self.parts])
        assert stacked.size(parameters) == rows.num_rows
        self.parts, self.bytes = [], 0
        self.store.add(parameters, rows)
        self.last = time.monotonic()
