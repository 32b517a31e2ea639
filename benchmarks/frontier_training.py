"""Training of the learned correction that `frontier.py` measures: a family over the projected block, many sources.

The probes are fixed and sources are not augmented, so what is projected of each source is computed once before the
first step. A report is a line of the log and a translator; what was cut off goes on from its last report.

    KT_RAY_DATA=… python benchmarks/frontier_training.py ZOO WORK --seed 0 --minutes 60
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kt_ray.config import DatasetConfig, TrialConfig, validate
from kt_ray.data import load_dataset
from kt_ray.networks import State
from kt_ray.translation.checkpoint import save_translator
from kt_ray.translation.projector import Projected, Projector
from kt_ray.translation.training import TranslatorTraining
from kt_ray.translation.units import Units
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore

SELECTION_IMAGES = 1000
AT_ONCE = 32  # members projected at once
STEPS = 40  # between two reports


def trial(seed: int, width: int, depth: int) -> TrialConfig:
    """Return the settings of the learned correction; a constant rate and averaged weights, so it may stop anywhere."""
    return validate(
        TrialConfig,
        {
            "seed": seed,
            "translator": {
                "family": "axial_transformer", "output": "residual", "base": "projected", "statistics": True,
                "context": "network", "projection": {"probes": 64, "images": "mixture"},
                "axial_transformer": {"width": width, "depth": depth, "heads": 4},
            },
            "loss": {"weight_mse": 0.0, "head_input": 0.3, "kl": 1.0, "images": 16},
            "training": {
                "epochs": 100_000, "steps_per_epoch": STEPS, "batch_size": 32, "learning_rate": 1e-3,
                "schedule": "constant", "clip_norm": 1.0, "ema": 0.995,
            },
        },
    )  # fmt: skip


class Remembered(nn.Module):
    """A projector whose answers for the members of `zoo` are known; members are told by two of their weights."""

    def __init__(self, projector: Projector, zoo: Zoo, members: State) -> None:
        super().__init__()
        self.register_buffer("probes", projector.probes)
        parts: list[list[Tensor]] = []
        with torch.no_grad():
            for start in range(0, len(zoo), AT_ONCE):
                (found,) = projector({name: value[start : start + AT_ONCE] for name, value in members.items()})
                units, chosen = found.units, found.chosen
                if chosen is None:
                    raise SystemExit("only pairs of convolutions are remembered")
                part = [units.edges, units.unit, units.channel, chosen, found.activity, found.errors]
                parts.append([value.clone() for value in part])
        self.parts = [torch.cat(values) for values in zip(*parts, strict=True)]
        self.keys, self.rows = self._keys(members).sort()

    def _keys(self, members: State) -> Tensor:
        return members["conv1.weight"].flatten(1)[:, :2].contiguous().view(torch.int64)[:, 0]

    def forward(self, members: State, count: int = 1) -> list[Projected]:
        """Return what the projector gave for `members`."""
        rows = self.rows[torch.searchsorted(self.keys, self._keys(members))]
        edges, unit, channel, chosen, activity, errors = (part[rows] for part in self.parts)
        return [Projected(Units(edges, unit, channel), chosen, activity, errors)]


def _write(work: Path, training: TranslatorTraining, report: dict[str, float]) -> None:
    config, architecture = training.config.translator, training.architecture
    save_translator(work / "translator.safetensors", training.translator, config, architecture, {"report": report})


def main() -> None:
    """Train until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", help="directory or URI")
    parser.add_argument("work", type=Path, help="folder of checkpoint, log and translator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began, processor = time.monotonic(), time.process_time()
    store = ZooStore(arguments.zoo)
    zoo, dataset = store.read(), load_dataset(DatasetConfig(**store.definition()["dataset"]))
    dataset = replace(dataset, selection=dataset.selection.take(slice(0, SELECTION_IMAGES)))
    training = TranslatorTraining(trial(arguments.seed, arguments.width, arguments.depth), zoo, dataset)
    arguments.work.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.work / "training.safetensors"
    if checkpoint.exists():
        training.load(checkpoint)
    model, projector = training.model, training.translator.projector
    remembered = Remembered(projector, zoo, model.read(zoo.parameters))
    for part in (model, training.translator):
        part.projector = remembered
    with (arguments.work / "log.jsonl").open("a") as log:
        while time.monotonic() - began < 60 * arguments.minutes:
            report = training.run_epoch()
            report |= {"steps": training.epoch * STEPS, "processor_seconds": time.process_time() - processor}
            log.write(json.dumps(report) + "\n")
            log.flush()
            training.save(checkpoint)
            training.translator.projector = projector
            _write(arguments.work, training, report)
            training.translator.projector = remembered


if __name__ == "__main__":
    main()
