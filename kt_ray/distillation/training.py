"""Train a student from labels and, unless the method is `none`, from a frozen teacher. A teacher is trained so too."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kt_ray.config import FitConfig
from kt_ray.data import Dataset, LabelledImages
from kt_ray.distillation.features import run_with_features
from kt_ray.distillation.fitting import Fit
from kt_ray.distillation.images import EVALUATION_BATCH, Batch
from kt_ray.distillation.methods import Method, Targets
from kt_ray.networks.cost import parameter_count

Teaching = Callable[[Batch], dict[str, Targets]]  # what the terms of the method compare with, for a batch


def no_teaching(batch: Batch) -> dict[str, Targets]:
    """For the method `none`: there is no teacher."""
    return {}


class StudentTraining(Fit):
    """One student trained by one method.

    `student` is any classifier of float images [N, C, H, W] in [0, 1]; `method` holds the terms (and translators,
    trained beside it); `teaching` gives their targets. Teacher and paraphrasers are not known here: they cannot change.
    """

    what = "the training of the network"

    def __init__(
        self,
        student: nn.Module,
        method: Method,
        teaching: Teaching,
        config: FitConfig,
        dataset: Dataset,
        seed: int = 0,
        device: torch.device | str = "cpu",
        translator_learning_rate: float | None = None,
    ) -> None:
        self.student, self.method, self.teaching = student.to(device), method.to(device), teaching
        self.selection = dataset.selection.to(device)
        rate = config.learning_rate
        modules = {"student": (student, rate), "translators": (method, translator_learning_rate or rate)}
        super().__init__(config, dataset.train.to(device), modules, seed)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the method, and their weighted sum, `loss`."""
        outputs = run_with_features(self.student, batch.images, self.method.student_layers)
        losses: dict[str, Tensor] = self.method(outputs, batch.labels, self.teaching(batch))
        return losses

    def measured(self) -> dict[str, float]:
        """The student's `parameters` and its `accuracy` on the selection images."""
        metrics = {"parameters": float(parameter_count(self.student))}
        if len(self.selection):
            metrics["accuracy"] = accuracy(self.student, self.selection)
        return metrics


@torch.no_grad()
def accuracy(network: nn.Module, images: LabelledImages) -> float:
    """Share of `images` that `network` gets right, in evaluation mode."""
    network.eval()
    right = sum(int((network(batch).argmax(1) == labels).sum()) for batch, labels in images.batches(EVALUATION_BATCH))
    return right / len(images)
