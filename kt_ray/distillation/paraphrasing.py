"""Train a paraphraser on a frozen teacher's feature maps; labels are not read."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from kt_ray.config import ParaphraserConfig
from kt_ray.data import Dataset
from kt_ray.distillation.factors import Paraphraser, reconstruction_error
from kt_ray.distillation.features import feature_shapes, run_with_features
from kt_ray.distillation.fitting import ScheduledSGD, finite, load_part, read_checkpoint, read_progress, save_checkpoint
from kt_ray.distillation.images import batches


class ParaphraserTraining:
    """One paraphraser of `layer` of `teacher`, trained by L1 reconstruction; deterministic and resumable."""

    def __init__(
        self,
        teacher: nn.Module,
        layer: str,
        config: ParaphraserConfig,
        dataset: Dataset,
        device: torch.device | str = "cpu",
    ) -> None:
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        self.layer, self.config = layer, config
        self.images = dataset.train.to(device)
        channels = feature_shapes(teacher, [layer], dataset.image_shape)[layer][0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.paraphraser = Paraphraser(channels, config.rate).to(device)
        fit = config.training
        self.steps_per_epoch = -(-len(self.images) // fit.batch_size)
        groups = [(list(self.paraphraser.parameters()), fit.learning_rate)]
        self.optimizer = ScheduledSGD(fit, groups, fit.epochs * self.steps_per_epoch)
        self.epoch = 0
        self.seconds = 0.0

    @property
    def finished(self) -> bool:
        """True if all epochs are done."""
        return self.epoch >= self.config.training.epochs

    @property
    def images_seen(self) -> int:
        """Training images read so far, each as often as it was read."""
        return self.epoch * len(self.images)

    def run_epoch(self) -> dict[str, float]:
        """One pass over the training images; the mean L1 `loss`. Raises ConfigError where it is no longer finite."""
        start = time.perf_counter()
        total = torch.zeros((), device=self.images.images.device)
        for batch in batches(self.images, self.config.training, self.config.seed, self.epoch):
            with torch.no_grad():
                maps = run_with_features(self.teacher, batch.images, [self.layer]).features[self.layer]
            loss = reconstruction_error(self.paraphraser, maps)
            self.optimizer.descend(loss)
            total += loss.detach() * len(batch.labels)
        mean = finite(float(total) / len(self.images), "the paraphraser", self.epoch)
        self.epoch += 1
        self.seconds += time.perf_counter() - start
        return {"loss": mean, "seconds": self.seconds}

    def save(self, path: Path) -> None:
        """Everything needed to go on, as safetensors."""
        parts = {"paraphraser": self.paraphraser.state_dict(), "optimizer": self.optimizer.state()}
        save_checkpoint(path, parts, {"epoch": self.epoch, "seconds": self.seconds})

    def load(self, path: Path) -> None:
        """Go on from `path`. Raises CheckpointError where it is of another paraphraser."""
        parts, facts = read_checkpoint(path)
        load_part(self.paraphraser, parts, "paraphraser", path)
        self.epoch, self.seconds = read_progress(facts, path)
        self.optimizer.restore(parts.get("optimizer", {}), self.epoch * self.steps_per_epoch)
