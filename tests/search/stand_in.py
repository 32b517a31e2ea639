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
    """Accuracy rises with the epochs towards a height set by learning rate and noise; `lr` 0.5 and above fails.

    The environment of nobody is looked at: special behaviour is asked for by configuration values alone.
    weight_decay 0.5: NaN; 0.25: fails; 0.125: the worker is lost in epoch 2 on its first try.
    """

    def __init__(self, config: TrialConfig, zoo: Any, dataset: Any, device: str) -> None:
        self.config = config
        self.epoch = 0
        self.total = 0.0

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
        return {"loss": 1 - self.total, "accuracy_mean": accuracy, "parameters": 10.0, "seconds": 0.0}

    def save(self, path: Path) -> None:
        path.write_text(json.dumps([self.epoch, self.total]))

    def load(self, path: Path) -> None:
        self.epoch, self.total = json.loads(path.read_text())


class Fragile(StandIn):
    """Loses its worker in its second epoch, the first time a trial gets there; `marks` keeps count on disk."""

    marks = Path(os.environ.get("KT_RAY_TEST_MARKS", "."))

    def run_epoch(self) -> dict[str, float]:
        metrics = super().run_epoch()
        mark = self.marks / f"{self.config.training.learning_rate}"
        if self.epoch == 2 and self.config.training.weight_decay == 0.125 and not mark.exists():
            mark.touch()
            os._exit(1)
        return metrics


def study_config(name: str = "s", **search: Any) -> StudyConfig:
    """A study of learning rate and noise over four epochs."""
    return StudyConfig.model_validate(
        {
            "name": name,
            "trial": {"training": {"epochs": 4, "clip_norm": 0.0}},
            "space": {
                "training.learning_rate": {"float": [1e-5, 1e-1], "log": True},
                "augmentation.noise.std": {"float": [0.0, 0.5]},
            },
            "search": {"trials": 6, "concurrency": 1, **search},
        }
    )
