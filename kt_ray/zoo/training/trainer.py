"""What a zoo actor does: it trains batches of members on its share of a node. No Ray here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from kt_ray.config import RecipeConfig
from kt_ray.config.code import CodeFile
from kt_ray.config.study_code import load_code
from kt_ray.data import Dataset, LabelledImages
from kt_ray.jobs.device import device_name, end_if_device_broken, is_out_of_memory, open_device, release_memory
from kt_ray.networks import AnyArchitecture
from kt_ray.zoo.members import Member
from kt_ray.zoo.training.members import Plan, train_members
from kt_ray.zoo.training.objectives import Candidate
from kt_ray.zoo.training.plan import measure, members_that_fit

logger = logging.getLogger(__name__)
PROBE_IMAGES = 512
Trained = tuple[dict[str, npt.NDArray[np.float32]], pa.Table]


class Trainer:
    """Trains batches of members on its share of a node."""

    def __init__(
        self,
        recipe: RecipeConfig,
        architecture: AnyArchitecture,
        dataset: Dataset,
        gpus: float,
        code: Sequence[CodeFile] = (),
    ) -> None:
        load_code(code)
        torch.set_num_threads(1)
        self.recipe, self.architecture, self.dataset = recipe, architecture, dataset
        self.device = open_device(gpus)
        self.most: int | None = None  # members at once that were seen to fit

    def ready(self) -> tuple[str, str]:
        """Return the device, as torch names it, and the name of it and of this actor's share, once this has started."""
        return self.device, device_name(self.device)

    def members_that_fit(self) -> int:
        """Return how many members to train at once if the configuration does not say."""
        try:
            return members_that_fit(self.architecture, self._probe_images(), self.recipe)
        except Exception as error:
            end_if_device_broken(error)
            raise

    def measure(self, candidate: Candidate, phase: str) -> float:
        """Return the seconds of one member's step."""
        try:
            return measure(candidate, phase, self.architecture, self._probe_images(), self.recipe)
        except Exception as error:
            end_if_device_broken(error)
            raise

    def _probe_images(self) -> LabelledImages:
        return self.dataset.train.take(slice(0, PROBE_IMAGES)).to(self.device)

    def train(self, members: Sequence[Member], plan: Plan) -> Trained:
        """Return a stack of NumPy arrays (read by the driver without a copy) and its index.

        If the device's memory does not hold as many members at once as `plan` says, half as many are trained at once.
        """
        while True:
            limited = replace(plan, at_once=min(plan.at_once, self.most or plan.at_once))
            try:
                parameters, rows = train_members(
                    members, self.recipe, self.architecture, self.dataset, self.device, limited
                )
                return {name: value.numpy() for name, value in parameters.items()}, rows
            except Exception as error:
                if not is_out_of_memory(error) or limited.at_once == 1:
                    end_if_device_broken(error)
                    raise
            self.most = limited.at_once // 2
            release_memory(self.device)
            logger.warning("out of memory: %s members at once from here on", self.most)
