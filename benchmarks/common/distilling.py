"""What the benchmarks of distillation share: stages that keep what is finished, and their accuracies over seeds."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from kt_ray.data import Dataset
from kt_ray.distillation.cache import Cache
from kt_ray.distillation.stages import Progress, Stages


def parser_of(description: str, name: str, seeds: int) -> argparse.ArgumentParser:
    """Return a parser of the options that these benchmarks have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path("kt-workspace/benchmarks") / name
    parser.add_argument("--directory", type=Path, default=folder, help="keeps what is finished")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--device", default="cpu")
    return parser


def stages_of(dataset: Dataset, arguments: argparse.Namespace) -> Stages:
    """Return stages that keep what they make in `--directory` and print every epoch."""

    def report(progress: Progress) -> None:
        print(f"{progress.stage} {progress.epoch}/{progress.epochs} {progress.metrics}", flush=True)

    return Stages(Cache(arguments.directory), dataset, arguments.device, report)


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation and standard error."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return {
        "accuracies": values,
        "mean": statistics.mean(values),
        "std": deviation,
        "standard_error": deviation / len(values) ** 0.5,
    }


def difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Difference of the means in accuracy points; its standard error as of independent seeds, and seed by seed."""
    pairs = [100 * (a - b) for a, b in zip(one["accuracies"], other["accuracies"], strict=True)]
    return {
        "points": statistics.mean(pairs),
        "standard_error": 100 * (one["standard_error"] ** 2 + other["standard_error"] ** 2) ** 0.5,
        "paired_standard_error": statistics.stdev(pairs) / len(pairs) ** 0.5,
        "seeds_won": sum(pair > 0 for pair in pairs),
    }
