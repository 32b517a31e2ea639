"""How many copies of a zoo lie in memory while several processes train over it."""

from __future__ import annotations

from typing import Any

import ray

from common.memory import own_mib
from kt_ray.config import DatasetConfig, MemberCounts, RayConfig, TrialConfig
from kt_ray.data import load_dataset
from kt_ray.jobs.connection import connected
from kt_ray.networks import PaperArchitecture
from kt_ray.search.tensor_transport import tensors_as_arrays
from kt_ray.translation.training import TranslatorTraining
from kt_ray.zoo.untrained import untrained_zoo

PAGE = 4096  # bytes
COUNTS = MemberCounts(train=4, selection=8, test=1)
IMAGES = DatasetConfig(name="mnist5k", train_images=200, selection_images=1)  # what runs on more would drown the zoo


@ray.remote(num_cpus=0)
class Holder:
    """Holds a translator in training over a zoo, every page of which is mapped."""

    def hold(self, zoo: Any, dataset: Any) -> float:
        """Return the MiB of this process's private memory then."""
        trial = TrialConfig.model_validate({"translator": {"mixer": {"size": "tiny"}}})
        self.training = TranslatorTraining(trial, zoo, dataset)
        for tensors in (zoo.parameters, self.training.sites[0].members):
            for value in tensors.values():
                float(value.reshape(-1)[:: PAGE // 4].nan_to_num().sum())
        return own_mib()


def count_copies(at_once: int, members: int) -> dict[str, float]:
    """Copies of a zoo in memory while `at_once` processes train over it: beyond the one in the object store, the
    private memory that they take more than with a zoo of four training members."""
    few, many = (
        untrained_zoo(PaperArchitecture("basic_to_simple"), COUNTS.model_copy(update={"train": train}))
        for train in (COUNTS.train, members)
    )
    megabytes = sum(value.numel() * value.element_size() for value in many.parameters.values()) / 2**20
    with connected(RayConfig(cpus=2)):
        with tensors_as_arrays():
            images, zoos = ray.put(load_dataset(IMAGES)), [ray.put(zoo) for zoo in (few, many)]
        private = []
        for reference in zoos:
            holders = [Holder.remote() for _ in range(at_once)]
            private.append(sum(ray.get([holder.hold.remote(reference, images) for holder in holders])))
            for holder in holders:
                ray.kill(holder)
    more = private[1] - private[0]
    return {"zoo_mb": megabytes, "private_mb": more, "copies": 1 + more / megabytes}
