"""A zoo of the paper's scale, with random parameters: opened, verified, put into Ray's object store, served in batches.

Writes the zoo shard by shard, then measures: seconds until the index is read and the zoo known (open); a stream of
checked shards into the object store, one object a shard, so that the driver never holds the zoo; the bytes that the
object store then holds over the bytes of the zoo (copies); and shuffled, augmented batches of 4,096 pairs in two trials
at once, each a process that reads the same objects. Also: seconds to add a shard to a zoo of 10 and of 1,000 shards.

    python benchmarks/zoo_scale.py --pairs 300000 --folder /somewhere/with/10/GB
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from common.memory import own_mib, peak_mib
from common.ray_cluster import stored_bytes
from common.results import write

from kt_ray.config import DatasetConfig, MemberCounts, ZooConfig
from kt_ray.data import load_dataset
from kt_ray.networks import PaperArchitecture, State
from kt_ray.zoo.store import ZooStore
from kt_ray.zoo.training.batching import bytes_of
from kt_ray.zoo.training.stacking import fresh

ARCHITECTURE = PaperArchitecture("basic_to_simple")
SHARD_PAIRS = 4096
BATCH = 4096
BATCHES = 10


def random_pairs(count: int, generator: torch.Generator) -> State:
    """`count` rows of random parameters."""
    network, block = fresh(ARCHITECTURE.source_network, [0]), fresh(ARCHITECTURE.target_block, [0])
    shapes = {name.replace("block.", "source."): value.shape[1:] for name, value in network.items()}
    shapes |= {f"target.{name}": value.shape[1:] for name, value in block.items()}
    return {name: torch.rand((count, *shape), generator=generator) for name, shape in shapes.items()}


def rows_of(first: int, count: int) -> pa.Table:
    numbers = range(first, first + count)
    return pa.table(
        {
            "id": [f"train-{number:06d}" for number in numbers],
            "seed": pa.array(numbers, pa.int64()),
            "split": ["train"] * count,
            "epoch": pa.array([10] * count, pa.int32()),
            "has_target": [True] * count,
            "source_accuracy": [0.9] * count,
            "target_accuracy": [0.9] * count,
            "seconds": [1.0] * count,
        }
    )


def fill(store: ZooStore, pairs: int) -> list[float]:
    """Write the zoo; returns the seconds of each shard."""
    generator, seconds = torch.Generator().manual_seed(0), []
    for first in range(0, pairs, SHARD_PAIRS):
        count = min(SHARD_PAIRS, pairs - first)
        parameters = random_pairs(count, generator)
        began = time.perf_counter()
        store.add(parameters, rows_of(first, count))
        seconds.append(time.perf_counter() - began)
    return seconds


@ray.remote(num_cpus=1)
def trial(shards: list[Any], seed: int) -> tuple[float, float]:
    """Seconds of a shuffled batch with noise and mask, and the MB of memory that this process has of its own."""
    torch.set_num_threads(1)
    stacks = [ray.get(shard) for shard in shards]
    sizes = [len(stack["source.conv1.weight"]) for stack in stacks]
    edges = np.cumsum([0, *sizes])
    generator = np.random.default_rng(seed)
    before = own_mib()
    began = time.perf_counter()
    for _ in range(BATCHES):
        rows = np.sort(generator.choice(edges[-1], BATCH, replace=False))
        of_shard = np.searchsorted(edges, rows, side="right") - 1
        parts = [stack_rows(stacks[i], rows[of_shard == i] - edges[i]) for i in np.unique(of_shard)]
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for value in batch.values():
            value.add_(torch.randn_like(value), alpha=0.01).mul_(torch.rand_like(value) > 0.1)
    seconds = (time.perf_counter() - began) / BATCHES
    return seconds, own_mib() - before


def stack_rows(stack: dict[str, Any], rows: Any) -> State:
    """Source and target of some rows."""
    return {name: torch.from_numpy(value[rows]) for name, value in stack.items() if name[:6] in ("source", "target")}


def growth(folder: Path, pairs: int = 8) -> dict[str, float]:
    """Milliseconds to add a shard of `pairs` members to a zoo of about 10 and of 1,000 members."""
    store, generator = ZooStore(str(folder / "growth")), torch.Generator().manual_seed(1)
    store.create(ZooConfig(), ARCHITECTURE.pair, load_dataset(DatasetConfig()))
    seconds = []
    for first in range(0, 1000, pairs):
        parameters = random_pairs(pairs, generator)
        began = time.perf_counter()
        store.add(parameters, rows_of(first, pairs))
        seconds.append(time.perf_counter() - began)
    count = len(seconds) // 5
    return {
        "first_ms": 1000 * statistics.median(seconds[:count]),
        "last_ms": 1000 * statistics.median(seconds[-count:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300_000)
    parser.add_argument("--folder", type=Path, help="where the zoo is written; a temporary folder if unset")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        headline, results = measure(Path(folder), options.pairs)
    lines = ["| | |", "|---|---|"] + [f"| {name} | {value:.3g} |" for name, value in (headline | results).items()]
    write("zoo_scale", headline, results, [0, 1], "\n".join(lines))


def measure(folder: Path, pairs: int) -> tuple[dict[str, float], dict[str, float]]:
    grown = growth(folder)
    store = ZooStore(str(folder / "zoo"))
    store.create(ZooConfig(members=MemberCounts(train=pairs)), ARCHITECTURE.pair, load_dataset(DatasetConfig()))
    written = fill(store, pairs)
    began = time.perf_counter()
    opened = ZooStore(store.uri)
    info = opened.info()
    open_seconds = time.perf_counter() - began
    began = time.perf_counter()
    if faults := opened.verify():
        raise SystemExit(faults[0])
    verify_seconds = time.perf_counter() - began

    size = pairs * bytes_of(ARCHITECTURE)
    memory = {"object_store_memory": int(size * 1.5) + (1 << 28)}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1", **memory)
    before, began = own_mib(), time.perf_counter()
    shards, peak = [], before
    for part in opened.stream():
        shards.append(ray.put({name: value.numpy() for name, value in part.parameters.items()}))
        peak = max(peak, own_mib())
    put_seconds = time.perf_counter() - began
    used = stored_bytes(ray.nodes()[0]["NodeManagerPort"])
    answers = ray.get([trial.remote(shards, seed) for seed in range(2)])
    used_after = stored_bytes(ray.nodes()[0]["NodeManagerPort"])
    ray.shutdown()
    driver = (peak - before) * (1 << 20)
    headline = {"open_seconds": open_seconds, "copies": (max(used, used_after) + driver) / size}
    results = {
        "pairs": pairs,
        "gigabytes": size / 1e9,
        "shards": info.shards,
        "write_first_shards_seconds": statistics.median(written[:5]),
        "write_last_shards_seconds": statistics.median(written[-5:]),
        "verify_seconds": verify_seconds,
        "stream_into_object_store_seconds": put_seconds,
        "object_store_bytes_over_zoo_bytes": used_after / size,
        "driver_peak_megabytes": peak - before,
        "batch_seconds_two_trials_at_once": statistics.mean(seconds for seconds, _ in answers),
        "trial_own_megabytes": max(megabytes for _, megabytes in answers),
        "add_at_10_members_ms": grown["first_ms"],
        "add_at_1000_members_ms": grown["last_ms"],
        "driver_maximum_resident_megabytes": peak_mib(),
    }
    return headline, results


if __name__ == "__main__":
    main()
