"""A translator's training as a curve whose points are saved: it goes on where it stopped."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from kt_ray.config import TrialConfig
from kt_ray.data import Dataset
from kt_ray.translation.checkpoint import save_translator
from kt_ray.translation.training import TranslatorTraining
from kt_ray.zoo.members import AnyZoo, Zoo


@dataclass(frozen=True)
class Curve:
    """The training of `config`, an epoch a point, whose files have the name `name` in `folder` and each an ending."""

    folder: Path
    name: str
    config: TrialConfig

    def file(self, ending: str) -> Path:
        """Return the path of the file with this ending."""
        return self.folder / f"{self.name}{ending}"

    def points(self) -> list[dict[str, float]]:
        """Return the points so far: steps, processor seconds and what an epoch reports."""
        path = self.file(".jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def advance(self, zoo: AnyZoo, dataset: Dataset) -> None:
        """Train the next point of the curve and save."""
        training = TranslatorTraining(self.config, zoo, dataset)
        if self.file(".state").exists():
            training.load(self.file(".state"))
        began = time.process_time()
        metrics = training.run_epoch()
        seconds = time.process_time() - began
        point = {"steps": training.epoch * training.steps_per_epoch, "cpu_seconds": seconds} | metrics
        translator = self.file(".safetensors")
        save_translator(translator, training.translator, self.config.translator, zoo.architecture, point)
        training.save(self.file(".state"))
        lines = [json.dumps(line) for line in [*self.points()[: training.epoch - 1], point]]
        self.file(".jsonl").write_text("\n".join(lines) + "\n")
        print(f"{self.name}, {point['steps']} steps: {metrics['accuracy_mean']:.4f}", flush=True)


def sampled(zoo: Zoo, count: int) -> Zoo:
    """Return `count` training members of `zoo`, drawn by seed, and its selection members."""
    splits = zoo.index["split"].to_pylist()
    train = torch.tensor([row for row, split in enumerate(splits) if split == "train"])
    chosen = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:count]].sort().values
    selection = torch.tensor([row for row, split in enumerate(splits) if split == "selection"])
    return zoo.take(torch.cat([chosen, selection]))
