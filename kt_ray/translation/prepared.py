"""What all trials over one zoo need: made once a search, and mapped by a node's workers."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from kt_ray.data import Dataset
from kt_ray.translation.probe_images import Mixture, fitted
from kt_ray.translation.transplants import KEPT, Activations, Transplants
from kt_ray.zoo.members import AnyZoo


@dataclass(frozen=True, eq=False)
class Prepared:
    """What trials need that depends on zoo and dataset alone, so that one process makes it for all.

    `mixture` is fitted to the training images. `activations` are those of the selection members' stems at each site, on
    the CPU; None of a site where they are too large to keep. What is None, a training makes itself if it needs it.
    """

    mixture: Mixture | None
    activations: tuple[Activations | None, ...] | None

    @classmethod
    def of(cls, zoo: AnyZoo, dataset: Dataset, *, mixture: bool, activations: bool) -> Prepared:
        """Make what is asked for."""
        return cls(
            fitted(dataset.train.images) if mixture else None,
            tuple(site.kept for site in selection_of(zoo, dataset, "cpu")) if activations else None,
        )


@functools.lru_cache(maxsize=1)
def selection_of(zoo: AnyZoo, dataset: Dataset, device: str, prepared: Prepared | None = None) -> list[Transplants]:
    """Return selection members at each site with selection images, which a worker keeps for all trials.

    Their stem activations are the `prepared` ones on a CPU; another device makes its own.
    """
    views = zoo.where("selection").views()
    made = prepared.activations if prepared is not None and device == "cpu" else None
    return [
        Transplants(view, dataset.selection, device, keep=KEPT // len(views), kept=kept)
        for view, kept in zip(views, made or [None] * len(views), strict=True)
    ]
