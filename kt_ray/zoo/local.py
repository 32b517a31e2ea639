"""Building a zoo in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable

from kt_ray.config import PairChoice, ZooConfig
from kt_ray.data import Dataset
from kt_ray.networks import architecture_of
from kt_ray.zoo.members import AnyZoo, Member, members_of
from kt_ray.zoo.progress import BuildProgress, Count
from kt_ray.zoo.store import ZooStore
from kt_ray.zoo.training.batching import Buffer
from kt_ray.zoo.training.members import default_plan, train_members


def build_zoo_locally(
    config: ZooConfig,
    pair: str | PairChoice,
    dataset: Dataset,
    store: ZooStore,
    on_progress: Callable[[BuildProgress], None] | None = None,
    device: str = "cpu",
) -> AnyZoo:
    """Train the members missing in the zoo at `store` one batch after another, add them, and return the whole zoo.

    A member has the same bits as one trained by `kt_ray.zoo.actors.build_zoo` with the same implementation. Damage is
    mended: members that the index or a shard lost are trained again.
    Raises ZooError if a zoo of another pair, seed, network, recipe or dataset is stored there, or it cannot be written.
    """
    architecture = architecture_of(pair, config.network, dataset.image_shape, dataset.classes)
    plan, total = default_plan(architecture, device), len(members_of(config.seed, config.members))

    def train(missing: list[Member]) -> None:
        count, buffer = Count(total, len(missing)), Buffer(store)
        try:
            for start in range(0, len(missing), plan.at_once):
                batch = missing[start : start + plan.at_once]
                parameters, rows = train_members(batch, config.recipe, architecture, dataset, device, plan)
                buffer.add(parameters, rows)
                count.add(len(batch), rows["source_accuracy"].to_pylist())
                if on_progress is not None:
                    on_progress(count.progress(actors=1))
        finally:
            buffer.flush()

    return store.complete(config, pair, dataset, train)
