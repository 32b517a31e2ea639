"""Schedules by hand; checkpoints that are something else are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kt_ray.config import FitConfig
from kt_ray.data import LabelledImages
from kt_ray.distillation.fitting import Fit, read_checkpoint, save_checkpoint, scheduled
from kt_ray.distillation.images import Batch
from kt_ray.errors import CheckpointError, ConfigError


def test_the_papers_schedule() -> None:
    config, steps = FitConfig(), 391  # 50,000 images in batches of 128
    factors = {epoch: scheduled(config, epoch * steps, 164 * steps) for epoch in (0, 81, 82, 122, 123, 163)}
    assert factors == pytest.approx({0: 1, 81: 1, 82: 0.1, 122: 0.1, 123: 0.01, 163: 0.01})
    assert scheduled(config, 82 * steps - 1, 164 * steps) == 1
    assert (config.learning_rate, config.momentum, config.weight_decay, config.batch_size) == (0.1, 0.9, 5e-4, 128)


def test_cosine_with_warmup() -> None:
    config = FitConfig(schedule="cosine", warmup=0.2)
    factors = [scheduled(config, step, 10) for step in range(10)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert factors[6] == pytest.approx(0.5)
    assert factors[9] == pytest.approx(0.038, abs=1e-3)


def test_a_loss_that_is_not_finite() -> None:
    layer, images = nn.Linear(1, 1), LabelledImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4).long())

    class Diverging(Fit):
        what = "the paraphraser"

        def losses(self, batch: Batch) -> dict[str, Tensor]:
            return {"loss": layer.weight.sum() * (float("nan") if self.epoch == 2 else 1.0)}

    fit = Diverging(FitConfig(epochs=3), images, {"layer": (layer, 0.1)}, seed=0)
    assert list(fit.run_epoch()) == list(fit.run_epoch()) == ["loss", "seconds"]
    with pytest.raises(ConfigError, match=r"the paraphraser diverged in epoch 3: its loss is nan; lower its learn"):
        fit.run_epoch()


def test_a_checkpoint_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_checkpoint(path)
    save_checkpoint(path, {}, {"epoch": 1})
    assert read_checkpoint(path) == ({}, {"epoch": 1})
