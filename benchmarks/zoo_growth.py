"""A real build of 1,000 members by two Ray actors: does a member's time, or the driver's memory, grow with the zoo?

Members are trained for four steps in each phase, so that what grows with the zoo would be seen beside it: the index,
the shards, the driver's bookkeeping. Measured at every batch of ten that comes back, in the driver: wall time, the
driver's processor time, and the memory that the process has of its own (of the object store it maps pages, which Ray
accounts for). Over the first and over the last hundred members; of wall time medians, because of the machine's other
work, which its load average tells.

    python benchmarks/zoo_growth.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common.memory import own_mib, peak_mib
from common.results import write

from kt_ray.config import ActorConfig, DatasetConfig, MemberCounts, PhaseConfig, RayConfig, RecipeConfig, ZooConfig
from kt_ray.data import load_dataset
from kt_ray.jobs.connection import connected
from kt_ray.zoo.actors import build_zoo
from kt_ray.zoo.progress import BuildProgress
from kt_ray.zoo.store import ZooStore

BATCH = 10  # members
PHASE = PhaseConfig(epochs=1, steps=4)
DATASET = DatasetConfig(name="mnist5k", train_images=512, selection_images=128)
WINDOW = 100  # members


def measure(folder: Path, members: int) -> list[dict[str, float]]:
    """Where the build was at each batch that came back: members done, seconds since it began, megabytes, …."""
    config = ZooConfig(
        members=MemberCounts(train=members - 2, selection=1, test=1),
        recipe=RecipeConfig(source=PHASE, target=PHASE),
        actors=ActorConfig(count=2, members_at_once=BATCH),
    )
    store, dataset = ZooStore(str(folder / "zoo")), load_dataset(DATASET)
    seen: list[dict[str, float]] = []
    began = time.perf_counter()

    def look(progress: BuildProgress) -> None:
        now = {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time()}
        seen.append({"members": progress.done, "megabytes": own_mib(), "load_average": os.getloadavg()[0]} | now)

    with connected(RayConfig(cpus=2)):
        zoo = build_zoo(config, "basic_to_simple", dataset, store, look)
    if len(zoo) != members or store.verify():
        raise SystemExit(f"the zoo has {len(zoo)} members, expected {members}; {store.verify()}")
    return seen


def seconds_a_member(seen: list[dict[str, float]]) -> float:
    """The median over pairs of batches: two actors often end theirs together."""
    pairs = zip(seen, seen[2:], strict=False)
    return statistics.median((b["seconds"] - a["seconds"]) / (b["members"] - a["members"]) for a, b in pairs)


def processor_milliseconds_a_member(seen: list[dict[str, float]]) -> float:
    """Of the driver, over the whole of `seen`."""
    spent = seen[-1]["processor_seconds"] - seen[0]["processor_seconds"]
    return 1000 * spent / (seen[-1]["members"] - seen[0]["members"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        seen = measure(Path(folder), options.members)
    count = WINDOW // BATCH
    first, last = seen[: count + 1], seen[-count - 1 :]
    half = len(seen) // 2
    headline = {
        "second_over_first_half_seconds_a_member": seconds_a_member(seen[half:]) / seconds_a_member(seen[:half]),
        "last_over_first_seconds_a_member": seconds_a_member(last) / seconds_a_member(first),
        "driver_growth_megabytes": last[-1]["megabytes"] - first[-1]["megabytes"],
    }
    results: dict[str, Any] = {
        "first_hundred_seconds_a_member": seconds_a_member(first),
        "middle_seconds_a_member": seconds_a_member(seen[count:-count]),
        "last_hundred_seconds_a_member": seconds_a_member(last),
        "first_hundred_driver_processor_ms_a_member": processor_milliseconds_a_member(first),
        "last_hundred_driver_processor_ms_a_member": processor_milliseconds_a_member(last),
        "first_hundred_load_average": statistics.mean(entry["load_average"] for entry in first),
        "last_hundred_load_average": statistics.mean(entry["load_average"] for entry in last),
        "build_seconds": seen[-1]["seconds"],
        "driver_megabytes_after_100_members": first[-1]["megabytes"],
        "driver_megabytes_at_the_end": last[-1]["megabytes"],
        "driver_most_megabytes_at_a_batch": max(entry["megabytes"] for entry in seen),
        "driver_maximum_resident_megabytes": peak_mib(),
    }
    lines = [f"{options.members:,} members, two actors, four steps a phase.", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value:.3g} |" for name, value in (headline | results).items()]
    lines += ["", "| members | seconds | driver's megabytes | load average |", "|---|---|---|---|"]
    lines += [
        f"| {entry['members']:.0f} | {entry['seconds']:.1f} | {entry['megabytes']:.1f} | {entry['load_average']:.1f} |"
        for entry in seen[::count]
    ]
    write("zoo_growth", headline, results | {"seen": seen}, [0], "\n".join(lines))


if __name__ == "__main__":
    main()
