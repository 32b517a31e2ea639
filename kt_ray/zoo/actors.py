"""Ray actors that train the missing members of a zoo. They return results; the driver writes them to the store."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError

from kt_ray.config import PairChoice, ZooConfig
from kt_ray.data import Dataset
from kt_ray.errors import ResourceError, ZooError
from kt_ray.jobs.connection import fitting
from kt_ray.jobs.remote import ray_options
from kt_ray.networks import AnyArchitecture, architecture_of
from kt_ray.zoo.members import AnyZoo, Member, members_of
from kt_ray.zoo.progress import BuildProgress, Count
from kt_ray.zoo.store import ZooStore
from kt_ray.zoo.training.batching import Buffer, batches_of, bytes_of
from kt_ray.zoo.training.members import Plan
from kt_ray.zoo.training.objectives import Candidate
from kt_ray.zoo.training.plan import ON_A_CPU, ProbeMemory, candidates, choose, runs
from kt_ray.zoo.training.trainer import Trained, Trainer

logger = logging.getLogger(__name__)

TRIES = 4  # of one batch of members, each time on an actor that died
WATCH_SECONDS = 2.0  # between looks for new nodes
PATIENCE_SECONDS = 60.0  # without any node that could hold an actor
OnProgress = Callable[[BuildProgress], None]


def build_zoo(
    config: ZooConfig, pair: str | PairChoice, dataset: Dataset, store: ZooStore, on_progress: OnProgress | None = None
) -> AnyZoo:
    """Train the members that the zoo at `store` is missing, add them, return the whole zoo. Ray must be initialised.

    Actors first run the code that registered network and pair, if a study brought it along.
    Damage is mended: what the index lost or a damaged shard held is trained again. Work of an actor that dies is
    given to another, and nodes that join get work. Raises ZooError if a batch fails again and again or cannot
    be written, ResourceError if no node can hold an actor.
    """
    architecture = architecture_of(pair, config.network, dataset.image_shape, dataset.classes)

    def train(missing: list[Member]) -> None:
        _Build(config, architecture, dataset, store, missing, on_progress).run()

    return store.complete(config, pair, dataset, train)


@dataclasses.dataclass(frozen=True)
class _Worker:
    """An actor that has started; `device` as torch names it, `name` of it and of the actor's share."""

    actor: Any
    device: str
    name: str


class _Build:
    """One build: actors starting, idle and running, and the batches left."""

    def __init__(
        self,
        config: ZooConfig,
        architecture: AnyArchitecture,
        dataset: Dataset,
        store: ZooStore,
        missing: list[Member],
        on_progress: OnProgress | None,
    ) -> None:
        self.config, self.architecture, self.store = config, architecture, store
        self.on_progress = on_progress
        actors = config.actors
        self.missing, self.room = missing, self._room()
        self._cut(actors.members_at_once or ON_A_CPU)
        options = ray_options(actors.demand, actors.label_selector)
        self.actor_class: Any = ray.remote(scheduling_strategy="SPREAD", **options)(Trainer)
        slim = dataclasses.replace(dataset, test=dataset.test.take(slice(0, 0)))  # actors see no test image
        self.dataset = ray.put(slim)
        self.starting: dict[Any, Any] = {}
        self.idle: list[_Worker] = []
        self.running: dict[Any, tuple[_Worker, list[Member]]] = {}
        self.plans: dict[str, Plan] = {}  # by the name of a device: nodes may have unlike ones
        self.tries: dict[str, int] = {}
        self.buffer = Buffer(store)
        self.count = Count(len(members_of(config.seed, config.members)), len(missing))
        self.last_look = self.last_room = time.monotonic()

    def run(self) -> None:
        """Train until nothing is missing. Actors are gone afterwards, and what was trained is in the store."""
        try:
            self._recruit()
            while self.batches or self.running:
                while self.batches and self.idle and len(self.running) < self.in_flight:
                    name = self.idle[-1].name
                    if name in self.plans:
                        worker, batch = self.idle.pop(), self.batches.popleft()
                        self.running[worker.actor.train.remote(batch, self.plans[name])] = (worker, batch)
                    else:
                        self._find_plan(name)
                self._wait()
                if time.monotonic() - self.last_look > WATCH_SECONDS:
                    self.last_look = time.monotonic()
                    self._recruit()
        finally:
            crew = [*self.idle, *(worker for worker, _ in self.running.values())]
            for actor in [*self.starting.values(), *(worker.actor for worker in crew)]:
                ray.kill(actor)
            self.buffer.flush()

    def _cut(self, at_once: int) -> None:
        """Cut the missing members into batches of at most `at_once`."""
        self.at_once = at_once
        self.batches = deque(batches_of(self.missing, at_once, self.room))
        self.in_flight = _most_in_flight(self.architecture, at_once * (1 + len(self.config.recipe.snapshots)))

    def _room(self) -> int:
        """Return how many actors the cluster has room for and the configuration wants."""
        count = self.config.actors.count
        room = fitting(self.config.actors.demand, self.config.actors.label_selector)
        return min(room, count or room)

    def _recruit(self) -> None:
        """Start actors for work that none has, as far as nodes go; they may have joined or left."""
        try:
            room = self._room()
            self.last_room = time.monotonic()
        except ResourceError:
            if time.monotonic() - self.last_room > PATIENCE_SECONDS:
                raise
            return
        wanted = min(room, len(self.batches) + len(self.running), self.in_flight)
        crew = len(self.starting) + len(self.idle) + len(self.running)
        for _ in range(wanted - crew):
            recipe, gpus, code = self.config.recipe, self.config.actors.gpus, self.architecture.code
            actor = self.actor_class.remote(recipe, self.architecture, self.dataset, gpus, code)
            self.starting[actor.ready.remote()] = actor

    def _wait(self) -> None:
        """Take in what has finished, or started, within `WATCH_SECONDS`."""
        pending = [*self.running, *self.starting]
        if not pending:
            time.sleep(WATCH_SECONDS)
            return
        finished, _ = ray.wait(pending, num_returns=1, timeout=WATCH_SECONDS)
        for reference in finished:
            if reference in self.starting:
                actor = self.starting.pop(reference)
                try:
                    self.idle.append(_Worker(actor, *ray.get(reference)))
                except RayActorError as error:
                    self._failed_start(error)
                continue
            worker, batch = self.running.pop(reference)
            try:
                trained = ray.get(reference)
            except RayTaskError as error:
                raise ZooError(f"training {batch[0].id} failed: {error.cause!r}") from error
            except RayError as error:
                ray.kill(worker.actor)
                self._lost(batch, error)
                continue
            self.idle.append(worker)
            self._take(batch, trained)

    def _take(self, batch: list[Member], trained: Trained) -> None:
        arrays, rows = trained
        # A copy, because the arrays are in the object store, which is to be free again.
        self.buffer.add({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, rows)
        if not self.batches and not self.running:
            self.buffer.flush()
        self.count.add(len(batch), rows.filter(rows["has_target"])["source_accuracy"].to_pylist())
        if self.on_progress is not None:
            self.on_progress(self.count.progress(actors=len(self.idle) + len(self.running)))

    def _lost(self, batch: list[Member], error: RayError) -> None:
        """Put the batch of a dead actor back."""
        self.tries[batch[0].id] = self.tries.get(batch[0].id, 0) + 1
        if self.tries[batch[0].id] >= TRIES:
            raise ZooError(
                f"{TRIES} actors died training {batch[0].id} and {len(batch) - 1} more ({_reason(error)}); "
                "their memory may not do: lower zoo.actors.members_at_once"
            )
        logger.warning("a zoo actor died (%s); its members, from %s, go to another", _reason(error), batch[0].id)
        self.batches.appendleft(batch)
        self._recruit()

    def _failed_start(self, error: RayError) -> None:
        self.tries["start"] = self.tries.get("start", 0) + 1
        if self.tries["start"] >= TRIES:
            raise ZooError(f"{TRIES} zoo actors died while they started ({_reason(error)}); see Ray's logs")
        self._recruit()

    def _find_plan(self, name: str) -> None:
        """Keep the fastest plan for the device `name`, from memory or measured on it, unless its actors all died.

        The first device's decides how many members a batch has; another trains as many of them at once as it holds.
        """
        memory, recipe, worker = ProbeMemory(self.store.uri), self.config.recipe, self._idle_on(name)
        if worker is None:
            return
        try:
            at_once = self.config.actors.members_at_once or ray.get(worker.actor.members_that_fit.remote())
        except RayActorError as error:
            self.idle.remove(worker)
            self._failed_start(error)
            return
        key = memory.key(self.architecture, recipe, at_once, name)
        plan = memory.recall(key)
        if plan is None or not runs(plan, self.architecture, worker.device, at_once):
            measured = [self._measure(name, worker.device, phase, at_once) for phase in ("source", "target")]
            if None in measured:
                return
            plan = choose(dict(zip(("source", "target"), measured, strict=True)))  # type: ignore[arg-type]
            plan = dataclasses.replace(plan, counter_draws=worker.device != "cpu")
            memory.keep(key, plan)
        if not self.plans:
            self._cut(at_once)
        self.plans[name] = plan

    def _measure(self, name: str, device: str, phase: str, at_once: int) -> dict[Candidate, float] | None:
        """Return the seconds of each candidate that runs; one that crashes its actor or runs out of memory is out.

        None if no actor is left on the device.
        """
        seconds = {}
        for candidate in candidates(self.architecture, device, phase, at_once):
            worker = self._idle_on(name)
            if worker is None:
                return None
            try:
                seconds[candidate] = ray.get(worker.actor.measure.remote(candidate, phase))
            except RayTaskError as error:
                logger.warning("%s cannot train the %s phase here: %s", candidate, phase, _reason(error))
            except RayActorError as error:
                logger.warning("%s crashed in the %s phase here: %s", candidate, phase, _reason(error))
                self.idle.remove(worker)
        return seconds

    def _idle_on(self, name: str) -> _Worker | None:
        """Return an idle actor on the device `name`, waiting for one; None if there are only actors on others."""
        while True:
            self._recruit()
            for worker in self.idle:
                if worker.name == name:
                    return worker
            if self.idle and not self.starting and not self.running:
                return None
            self._wait()


def _most_in_flight(architecture: AnyArchitecture, rows: int) -> int:
    """Batches of so many rows that fit into half of the smallest node's object store, so that none goes to disk."""
    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return max(1, int(min(stores) / 2 / (rows * bytes_of(architecture))))


def _reason(error: BaseException) -> str:
    """Return Ray's message in one line: the last, if it is about an error of the actor's own code, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    own = isinstance(error, RayTaskError) or "creation task" in lines[0]
    return lines[-1] if own else lines[0]
