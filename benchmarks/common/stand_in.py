"""What a search needs of a translator's training, without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kt_ray.config import TrialConfig

EPOCHS = 3


class StandIn:
    """A training of `epochs` epochs whose state is a number; `run_epoch` is each benchmark's own."""

    epochs: int

    def __init__(self, config: TrialConfig, zoo: Any, dataset: Any, device: str, prepared: Any = None) -> None:
        self.config = config
        self.epoch = 0
        self.state = 0.0

    @property
    def finished(self) -> bool:
        """True if all epochs are done."""
        return self.epoch >= self.epochs

    def save(self, path: Path) -> None:
        """Write epoch and state."""
        path.write_text(json.dumps([self.epoch, self.state]))

    def load(self, path: Path) -> None:
        """Read epoch and state."""
        self.epoch, self.state = json.loads(path.read_text())


class Nothing(StandIn):
    """In the place of a translator's training: an accuracy that follows from the values, at once."""

    epochs = EPOCHS

    def run_epoch(self) -> dict[str, float]:
        """Nothing."""
        self.epoch += 1
        return {"accuracy_mean": accuracy(self.config.training.learning_rate, self.epoch), "loss": 0.0}


def accuracy(learning_rate: float, epoch: int) -> float:
    """The same for both sides."""
    return epoch / EPOCHS - learning_rate
