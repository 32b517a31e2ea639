"""What a zoo actor does: it trains batches of members on its share of a node. No Ray here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from kt_ray.config import RecipeConfig
from kt_ray.data import Dataset
from kt_ray.networks import Architecture
from kt_ray.zoo.members import Member
from kt_ray.zoo.training.members import Plan, train_members
from kt_ray.zoo.training.plan import Candidate, device_name, measure

PROBE_IMAGES = 512
Trained = tuple[dict[str, npt.NDArray[np.float32]], pa.Table]


class Trainer:
    """Trains batches of members on its share of a node."""

    def __init__(self, recipe: RecipeConfig, architecture: Architecture, dataset: Dataset, gpus: float) -> None:
        torch.set_num_threads(1)
        self.recipe, self.architecture, self.dataset = recipe, architecture, dataset
        self.device = "cuda" if gpus and torch.cuda.is_available() else "cpu"
        if self.device == "cuda" and gpus < 1:
            torch.cuda.set_per_process_memory_fraction(gpus)

    def ready(self) -> str:
        """The device, once the actor has started."""
        return self.device

    def device_name(self) -> str:
        """What the device is."""
        return device_name(self.device)

    def measure(self, candidate: Candidate, phase: str) -> float:
        """Seconds of one member's step."""
        images = self.dataset.train.take(slice(0, PROBE_IMAGES)).to(self.device)
        return measure(candidate, phase, self.architecture, images, self.recipe)

    def train(self, members: Sequence[Member], plan: Plan) -> Trained:
        """A stack of NumPy arrays (read by the driver without a copy) and its index."""
        parameters, rows = train_members(members, self.recipe, self.architecture, self.dataset, self.device, plan)
        return {name: value.numpy() for name, value in parameters.items()}, rows
