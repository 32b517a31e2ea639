"""Train a paraphraser on a frozen teacher's feature maps; labels are not read."""

from __future__ import annotations

import time

import torch
from torch import nn

from kt_ray.config import ParaphraserConfig
from kt_ray.data import Dataset
from kt_ray.distillation.factors import Paraphraser, reconstruction_error
from kt_ray.distillation.features import feature_shapes, run_with_features
from kt_ray.distillation.fitting import Fit, finite
from kt_ray.distillation.images import batches


class ParaphraserTraining(Fit):
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
        channels = feature_shapes(teacher, [layer], dataset.image_shape)[layer][0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.paraphraser = Paraphraser(channels, config.rate).to(device)
        rate = config.training.learning_rate
        super().__init__(config.training, dataset.train.to(device), {"paraphraser": (self.paraphraser, rate)})

    def run_epoch(self) -> dict[str, float]:
        """One pass over the training images; the mean L1 `loss`. Raises ConfigError if it is no longer finite."""
        start = time.perf_counter()
        total = torch.zeros((), device=self.images.images.device)
        for batch in batches(self.images, self.fit, self.config.seed, self.epoch):
            with torch.no_grad():
                maps = run_with_features(self.teacher, batch.images, [self.layer]).features[self.layer]
            loss = reconstruction_error(self.paraphraser, maps)
            self.optimizer.descend(loss)
            total += loss.detach() * len(batch.labels)
        mean = finite(float(total) / len(self.images), "the paraphraser", self.epoch)
        self.epoch += 1
        self.seconds += time.perf_counter() - start
        return {"loss": mean, "seconds": self.seconds}
