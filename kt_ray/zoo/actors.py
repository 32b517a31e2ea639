"""Ray actors that train the members a zoo lacks. They return results; the driver writes them to the store."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError

from kt_ray.config import ActorConfig, PairName, RecipeConfig, ZooConfig
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
from kt_ray.networks import Architecture
from kt_ray.ray_cluster import fitting
from kt_ray.zoo.members import Member, Zoo, members_of
from kt_ray.zoo.store import ZooStore
from kt_ray.zoo.training import train_members

logger = logging.getLogger(__name__)

TRIES = 4  # of one batch of members, each time on an actor that died
Trained = tuple[dict[str, npt.NDArray[np.float32]], pa.Table]


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is. Counts are of members; `mean_accuracy` is of the sources trained by this build."""

    members: int
    done: int
    seconds: float
    members_per_hour: float
    eta_seconds: float | None
    mean_accuracy: float | None
    actors: int


class Trainer:
    """Trains batches of members on its share of a node."""

    def __init__(self, recipe: RecipeConfig, architecture: Architecture, dataset: Dataset) -> None:
        torch.set_num_threads(1)
        self.recipe = recipe
        self.architecture = architecture
        self.dataset = dataset
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def train(self, members: Sequence[Member]) -> Trained:
        """A stack of NumPy arrays (read by the driver without a copy) and its index."""
        parameters, rows = train_members(members, self.recipe, self.architecture, self.dataset, self.device)
        return {name: value.numpy() for name, value in parameters.items()}, rows


def build_zoo(
    config: ZooConfig,
    pair: PairName,
    dataset: Dataset,
    store: ZooStore,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> Zoo:
    """Train what the zoo at `store` lacks, add it, and return the whole zoo. Ray must be initialised.

    Damaged shards are trained again. Work of an actor that dies is given to another; raises ZooError where a
    batch fails again and again or cannot be written, ResourceError where no node can hold an actor.
    """
    architecture = Architecture(pair, config.network, dataset.image_shape, dataset.classes)
    store.create(config, pair, dataset)
    damaged = store.damaged()
    if damaged:
        for fault in damaged.values():
            logger.warning("%s; its members are trained again", fault)
        store.discard(set(damaged))
    wanted = members_of(config.seed, config.members)
    present = store.present()
    missing = [member for member in wanted if member.id not in present]
    if missing:
        _train(config, architecture, dataset, store, missing, len(wanted), on_progress)
    return store.read()


def _train(
    config: ZooConfig,
    architecture: Architecture,
    dataset: Dataset,
    store: ZooStore,
    missing: list[Member],
    total: int,
    on_progress: Callable[[BuildProgress], None] | None,
) -> None:
    actors = config.actors
    demand = {"CPU": actors.cpus, "GPU": actors.gpus, **actors.resources}
    room = fitting({name: amount for name, amount in demand.items() if amount}, actors.label_selector)
    batches = deque(_batches(missing, actors.members_at_once, min(room, actors.count or room)))
    workers = min(room, actors.count or room, len(batches))
    data = ray.put(Dataset(dataset.config, dataset.train, dataset.selection, dataset.selection, dataset.fingerprint))

    def start() -> Any:
        return _actor_class(actors).remote(config.recipe, architecture, data)

    began, done, accuracies = time.monotonic(), 0, [0.0, 0.0]
    idle = [start() for _ in range(workers)]
    running: dict[Any, tuple[Any, list[Member]]] = {}
    tries: dict[str, int] = {}
    try:
        while batches or running:
            while batches and idle:
                actor, batch = idle.pop(), batches.popleft()
                running[actor.train.remote(batch)] = (actor, batch)
            (finished,), _ = ray.wait(list(running), num_returns=1)
            actor, batch = running.pop(finished)
            try:
                arrays, rows = ray.get(finished)
            except RayActorError as error:
                tries[batch[0].id] = tries.get(batch[0].id, 0) + 1
                if tries[batch[0].id] >= TRIES:
                    raise ZooError(
                        f"{TRIES} actors died training {batch[0].id} and {len(batch) - 1} more ({_reason(error)}); "
                        "their memory may not do: lower zoo.actors.members_at_once"
                    ) from None
                logger.warning("a zoo actor died (%s); %s goes to another", _reason(error), batch[0].id)
                batches.append(batch)
                idle.append(start())
                continue
            except RayTaskError as error:
                raise ZooError(f"training {batch[0].id} failed: {error.cause}") from error
            idle.append(actor)
            store.add({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, rows)
            done += len(batch)
            final = rows.filter(rows["has_target"])["source_accuracy"]
            accuracies = [accuracies[0] + (pc.sum(final).as_py() or 0.0), accuracies[1] + len(final)]
            if on_progress:
                seconds = time.monotonic() - began
                on_progress(
                    BuildProgress(
                        members=total,
                        done=total - len(missing) + done,
                        seconds=seconds,
                        members_per_hour=done / seconds * 3600,
                        eta_seconds=(len(missing) - done) * seconds / done,
                        mean_accuracy=accuracies[0] / accuracies[1],
                        actors=workers,
                    )
                )
    finally:
        for actor in idle + [actor for actor, _ in running.values()]:
            ray.kill(actor)


def _actor_class(actors: ActorConfig) -> Any:
    options: dict[str, Any] = {"num_cpus": actors.cpus, "num_gpus": actors.gpus, "scheduling_strategy": "SPREAD"}
    if actors.resources:
        options["resources"] = dict(actors.resources)
    if actors.label_selector:
        options["label_selector"] = dict(actors.label_selector)
    return ray.remote(**options)(Trainer)


def _batches(members: list[Member], at_once: int, workers: int) -> list[list[Member]]:
    """`members` in order, at most `at_once` together, evenly, and in enough batches for all `workers`."""
    count = max(-(-len(members) // at_once), min(workers, len(members)))
    rounds = -(-count // workers)
    count = min(rounds * workers, len(members))
    edges = [round(i * len(members) / count) for i in range(count + 1)]
    return [members[low:high] for low, high in pairwise(edges)]


def _reason(error: RayError) -> str:
    return str(error).strip().splitlines()[0]
