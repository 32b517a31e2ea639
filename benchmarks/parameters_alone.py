"""Translation from parameters alone: no image is given or carried, how far more sources and more steps take it.

Two translators. `family`: one pass of an axial transformer over the pruned block. `written`: a network writes block
inputs from the stem's parameters, the block is fitted to them by least squares and corrected by an axial transformer;
there is no probe and no step. Training images count in the loss; none takes part in translating.

Each is trained on several numbers of sources, as many steps on each; on most sources from several seeds. Runs are saved
at each point of their curves: the command goes on where it stopped.

    KT_RAY_DATA=… python benchmarks/parameters_alone.py WORK --zoo SOURCES                    train for --minutes
    KT_RAY_DATA=… python benchmarks/parameters_alone.py WORK --zoo SOURCES --report FRESH      on fresh networks
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common.curves import Curve, sampled
from common.figures import Lines, draw
from common.markdown import table
from common.results import RESULTS, write

from kt_ray.config import TrialConfig
from kt_ray.data import Dataset
from kt_ray.studies.zoos import zoo_and_dataset
from kt_ray.translation.checkpoint import load_translator
from kt_ray.translation.transplants import translate, transplant_accuracy
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore

SOURCES = (2532, 160, 630)
SEEDS = (0, 1, 2)  # of a translator on most sources; the others have the first
STEPS = {"written": 3000, "family": 3000}  # optimiser steps in all
POINT = 150  # steps between points of a curve
FITTED = 64  # training members on which the fit is measured
TRAINING = {
    "batch_size": 16,
    "learning_rate": 0.002,
    "warmup": 0.03,
    "clip_norm": 1.0,
    "ema": 0.98,
    "weight_decay": 0.01,
}
TRANSLATORS: dict[str, dict[str, Any]] = {
    "written": {
        "base": "projected",
        "projection": {"probes": 24, "images": "written", "learned": True},
        "axial_transformer": {"width": 64, "depth": 2, "heads": 4},
    },
    "family": {"canonical": True, "axial_transformer": {"width": 96, "depth": 4, "heads": 4}},
}


@dataclass(frozen=True)
class Run:
    """One translator trained on so many sources from one seed."""

    kind: str
    sources: int
    seed: int = 0

    def curve(self, folder: Path) -> Curve:
        """Return the training, whose files are in `folder`."""
        seed = f"-seed-{self.seed}" if self.seed else ""
        return Curve(folder, f"{self.kind}-{self.sources}{seed}", self.config())

    def config(self) -> TrialConfig:
        """Return the trial."""
        known = {"family": "axial_transformer", "statistics": True, "context": "network", "output": "residual"}
        swapped = 0.1 if self.kind == "family" else 0.0
        return TrialConfig.model_validate(
            {
                "seed": self.seed,
                "translator": known | TRANSLATORS[self.kind],
                "loss": {"weight_mse": 0.0, "head_input": 0.3, "kl": 1.0, "images": 32},
                "augmentation": {"channel_permutation": True, "vary": 0.02, "swap_units": swapped},
                "training": TRAINING | {"epochs": STEPS[self.kind] // POINT, "steps_per_epoch": POINT},
            }
        )


def train(curves: dict[Run, Curve], zoo: Zoo, dataset: Dataset, steps: int, until: float) -> None:
    """Advance one run after the other until all are done, or at `steps`, or the clock says `until`."""
    for run, curve in curves.items():
        while len(curve.points()) * POINT < min(steps, STEPS[run.kind]) and time.time() < until:
            curve.advance(sampled(zoo, run.sources), dataset)


def report(curves: dict[Run, Curve], zoo: Zoo, fresh: Zoo, dataset: Dataset, count: int) -> None:
    """Measure every run that has begun on networks that nothing has seen, on test images; write the result."""
    images = dataset.test.take(slice(0, count))
    ceiling = transplant_accuracy(fresh, fresh.part("target"), images)
    mean, selected = float(ceiling.mean()), zoo.where("selection")
    wanted = float(transplant_accuracy(selected, selected.part("target"), dataset.selection).mean())
    found = []
    for run, curve in curves.items():
        if not (points := curve.points()):
            continue
        translator = load_translator(curve.file(".safetensors")).translator
        held_out = transplant_accuracy(fresh, translate(translator, fresh), images) / mean
        learned_from = sampled(zoo, run.sources).where("train", with_target=False).take(torch.arange(FITTED))
        fit = transplant_accuracy(learned_from, translate(translator, learned_from), dataset.selection)
        found.append(
            {
                "translator": run.kind,
                "sources": run.sources,
                "seed": run.seed,
                "steps": points[-1]["steps"],
                "parameters": points[-1]["parameters"],
                "cpu_minutes": sum(point["cpu_seconds"] for point in points) / 60,
                "mean_ratio": float(held_out.mean()),
                "min_ratio": float(held_out.min()),
                "fit_ratio": float(fit.mean()) / wanted,
                "selection_ratio": points[-1]["accuracy_mean"] / wanted,
                "curve": [(point["steps"], point["accuracy_mean"] / wanted) for point in points],
            }
        )
    text = text_of(found, len(fresh), len(images), mean)
    write("parameters_alone", headlines(found), found, sorted({entry["seed"] for entry in found}), text)
    panels: dict[str, Lines] = {kind: {} for kind in STEPS}
    for entry in found:
        panels[entry["translator"]][f"{entry['sources']} sources, seed {entry['seed']}"] = entry["curve"]
    labels = ("steps of 16 members", "selection members, over the trained target")
    draw({kind: lines for kind, lines in panels.items() if lines}, labels, RESULTS / "parameters_alone.png")


def headlines(found: list[dict[str, Any]]) -> dict[str, float]:
    """Return mean, spread over seeds and worst member of each translator on most sources."""
    headline: dict[str, float] = {}
    most = [entry for entry in found if entry["sources"] == max(SOURCES)]
    for kind in dict.fromkeys(entry["translator"] for entry in most):
        seeds = [entry for entry in most if entry["translator"] == kind]
        means = [entry["mean_ratio"] for entry in seeds]
        prefix = "" if kind == "written" else "family_"
        headline |= {
            f"{prefix}mean_ratio": statistics.mean(means),
            f"{prefix}spread": max(means) - min(means),
            f"{prefix}min_ratio": min(entry["min_ratio"] for entry in seeds),
            **{prefix + name: seeds[0][name] for name in ("sources", "steps")},
            f"{prefix}seeds": len(seeds),
        }
    return headline


def text_of(found: list[dict[str, Any]], members: int, images: int, ceiling: float) -> str:
    """Return the table with what its figures are."""
    about = (
        f"{members} fresh networks, {images:,} test images. Ratios are to the mean accuracy of trained targets, "
        f"{ceiling:.4f}; those on training members and selection members (of the zoo trained on, selection images) to "
        "that of the selection members' targets. Minutes are of one core."
    )
    ratios = {
        "mean ratio": "mean_ratio",
        "worst": "min_ratio",
        "selection members": "selection_ratio",
        "training members": "fit_ratio",
    }
    rows = [
        {name: entry[name] for name in ("translator", "sources", "seed", "steps")}
        | {head: f"{entry[name]:.4f}" for head, name in ratios.items()}
        | {"minutes": f"{entry['cpu_minutes']:.1f}"}
        for entry in found
    ]
    return f"{about}\n\n{table(rows)}"


def main() -> None:
    """Train the runs, or report them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="directory of the runs")
    parser.add_argument("--zoo", required=True, help="zoo of sources to learn from")
    parser.add_argument("--report", metavar="FRESH", help="zoo whose test members are held out")
    parser.add_argument("--images", type=int, default=10_000, help="test images of the report")
    parser.add_argument("--steps", type=int, default=max(STEPS.values()), help="train no run further than this")
    parser.add_argument("--minutes", type=float, default=60, help="stop training after so many")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    runs = [
        Run(kind, sources, seed)
        for kind in STEPS
        for sources in SOURCES
        for seed in (SEEDS if sources == max(SOURCES) else SEEDS[:1])
    ]
    curves = {run: run.curve(arguments.work) for run in runs}
    zoo, dataset = zoo_and_dataset(arguments.zoo, None)
    if arguments.report:
        report(curves, zoo, ZooStore(arguments.report).read().where("test"), dataset, arguments.images)
    else:
        train(curves, zoo, dataset, arguments.steps, time.time() + 60 * arguments.minutes)


if __name__ == "__main__":
    main()
