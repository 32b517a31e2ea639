"""Train a student from labels and, unless the method is `none`, from a frozen teacher. A teacher is trained so too."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from kt_ray.config import FitConfig
from kt_ray.data import Dataset, LabelledImages
from kt_ray.distillation.features import run_with_features
from kt_ray.distillation.fitting import Fit, finite
from kt_ray.distillation.images import EVALUATION_BATCH, Batch, batches
from kt_ray.distillation.methods import Method, Targets
from kt_ray.networks.cost import parameter_count

Teaching = Callable[[Batch], dict[str, Targets]]  # what the terms of the method compare with, for a batch


def no_teaching(batch: Batch) -> dict[str, Targets]:
    """For the method `none`: there is no teacher."""
    return {}


class StudentTraining(Fit):
    """One student trained by one method. Epochs are deterministic in `seed`; a loaded checkpoint continues to the
    same numbers.

    `student` is any classifier of float images [N, C, H, W] in [0, 1]; `method` holds the terms (and translators,
    trained beside it); `teaching` gives their targets. Teacher and paraphrasers are not known here: they cannot change.
    """

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
        self.seed, self.device = seed, device
        self.selection = dataset.selection.to(device)
        rate = config.learning_rate
        modules = {"student": (student, rate), "translators": (method, translator_learning_rate or rate)}
        super().__init__(config, dataset.train.to(device), modules)

    def run_epoch(self) -> dict[str, float]:
        """One pass over the training images: mean losses, `accuracy` on the selection images, `seconds`, `parameters`.

        Raises ConfigError if the loss is no longer finite.
        """
        start = time.perf_counter()
        self.student.train()
        sums: dict[str, torch.Tensor] = {}
        for batch in batches(self.images, self.fit, self.seed, self.epoch):
            outputs = run_with_features(self.student, batch.images, self.method.student_layers)
            parts = self.method(outputs, batch.labels, self.teaching(batch))
            self.optimizer.descend(parts["loss"])
            for name, value in parts.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value.detach() * len(batch.labels)
        means = {name: float(value) / len(self.images) for name, value in sums.items()}
        finite(means["loss"], "the training of the network", self.epoch)
        metrics = means | {"parameters": float(parameter_count(self.student))}
        if len(self.selection):
            metrics["accuracy"] = accuracy(self.student, self.selection)
        self.epoch += 1
        self.seconds += time.perf_counter() - start
        return metrics | {"seconds": self.seconds}


@torch.no_grad()
def accuracy(network: nn.Module, images: LabelledImages) -> float:
    """Share of `images` that `network` gets right, in evaluation mode."""
    network.eval()
    right = sum(int((network(batch).argmax(1) == labels).sum()) for batch, labels in images.batches(EVALUATION_BATCH))
    return right / len(images)
