"""A training that takes no time: what a search needs of one, with numbers that follow from the configuration."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from kt_ray.config import StudyConfig, TrialConfig


class StandIn:
    """Accuracy rises with the epochs towards a height that learning rate and noise set.

    Some values of `weight_decay` ask for trouble in the second epoch: 0.5 NaN, 0.25 an error; and, the first time only,
    0.125 a lost worker, 0.0625 too little memory, 0.03125 a broken device. `clip_norm` is the seconds that an epoch
    takes.
    """

    def __init__(self, config: TrialConfig, zoo: Any, dataset: Any, device: str, prepared: Any = None) -> None:
        self.config = config
        self.epoch = 0
        self.total = 0.0
        self.resumed = False

    @property
    def finished(self) -> bool:
        return self.epoch >= self.config.training.epochs

    def run_epoch(self) -> dict[str, float]:
        time.sleep(self.config.training.clip_norm)
        decay = self.config.training.weight_decay
        self.epoch += 1
        height = math.exp(-abs(math.log10(self.config.training.learning_rate) + 3))
        self.total += height / self.config.training.epochs
        accuracy = self.total - self.config.augmentation.noise.std
        if decay == 0.5 and self.epoch == 2:
            accuracy = math.nan
        if decay == 0.25 and self.epoch == 2:
            raise RuntimeError("loss went away")
        if decay == 0.125 and self.epoch == 2 and not self.resumed:
            os._exit(1)
        if decay == 0.0625 and self.epoch == 2 and not self.resumed:
            raise MemoryError
        if decay == 0.03125 and self.epoch == 2 and not self.resumed:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return {"loss": 1 - self.total, "accuracy_mean": accuracy, "parameters": 10.0, "seconds": 0.0}

    def save(self, path: Path) -> None:
        path.write_text(json.dumps([self.epoch, self.total]))

    def load(self, path: Path) -> None:
        self.epoch, self.total = json.loads(path.read_text())
        self.resumed = True


def study_config(name: str = "s", *, sleep: float = 0.0, **search: Any) -> StudyConfig:
    """A study of learning rate and noise over four epochs that take `sleep` seconds each."""
    return StudyConfig.model_validate(
        {
            "name": name,
            "trial": {"training": {"epochs": 4, "clip_norm": sleep}},
            "space": {
                "training.learning_rate": {"float": [1e-5, 1e-1], "log": True},
                "augmentation.noise.std": {"float": [0.0, 0.5]},
            },
            "search": {"trials": 6, "concurrency": 1, **search},
        }
    )
