"""Train a paraphraser on a frozen teacher's feature maps; labels are not read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kt_ray.config import ParaphraserConfig
from kt_ray.data import Dataset
from kt_ray.distillation.factors import Paraphraser, reconstruction_error
from kt_ray.distillation.features import feature_shapes, run_with_features
from kt_ray.distillation.fitting import Fit
from kt_ray.distillation.images import Batch


class ParaphraserTraining(Fit):
    """One paraphraser of `layer` of `teacher`, trained by L1 reconstruction; deterministic and resumable."""

    what = "the paraphraser"

    def __init__(
        self,
        teacher: nn.Module,
        layer: str,
        config: ParaphraserConfig,
        dataset: Dataset,
        device: torch.device | str = "cpu",
    ) -> None:
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        self.layer = layer
        channels = feature_shapes(teacher, [layer], dataset.image_shape)[layer][0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.paraphraser = Paraphraser(channels, config.rate).to(device)
        modules = {"paraphraser": (self.paraphraser, config.training.learning_rate)}
        super().__init__(config.training, dataset.train.to(device), modules, config.seed)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The L1 `loss`."""
        with torch.no_grad():
            maps = run_with_features(self.teacher, batch.images, [self.layer]).features[self.layer]
        return {"loss": reconstruction_error(self.paraphraser, maps)}
