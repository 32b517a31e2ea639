"""What a trial costs beside its training: what depends on zoo and images alone, made by each worker or once for all.

Real trials of a study over a real zoo, so many at once. In one arm the driver makes the mixture and the selection
members' stem activations, which all workers map from the object store; in the other each worker makes its own. The arms
alternate, in pairs, each on a Ray session of its own. Recorded: trials an hour, by the clock and by processors; a
trial's processor seconds before its first step; a worker's private memory; the share of a trial that is the translating
of its reports. Further: how many copies of a zoo eight trials at once hold.

    KT_RAY_DATA=… python benchmarks/trial_cost.py search_spaces/frontier.yaml ZOO
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from common.markdown import table
from common.memory import own_mib
from common.results import RESULTS, write
from common.timing import seconds
from common.zoo_copies import count_copies

from kt_ray.config import RayConfig, StudyConfig
from kt_ray.data import load_dataset
from kt_ray.jobs.connection import connected
from kt_ray.search.retries import METRICS
from kt_ray.search.runner import run_search
from kt_ray.search.storage import open_storage
from kt_ray.search.study import SearchStudy
from kt_ray.studies.study_file import read_study
from kt_ray.studies.translation_study import draws_mixture
from kt_ray.studies.workspace import Workspace
from kt_ray.tracking.tracker import Tracker
from kt_ray.translation.task import TranslatorTask
from kt_ray.translation.training import TranslatorTraining
from kt_ray.translation.transplants import translate
from kt_ray.zoo.store import ZooStore

TOUCHED = 1024  # floats of a page
MEASURED = ("begin_seconds", "trial_seconds_cpu", "translating_seconds", "private_mib")


class Measured(TranslatorTraining):
    """A training that reports its processor seconds and its worker's private memory too."""

    def __init__(self, *given: Any) -> None:
        self.begun = seconds(lambda: super(Measured, self).__init__(*given), time.process_time)
        self.spent = self.translating = 0.0

    def run_epoch(self) -> dict[str, float]:
        began = time.process_time()
        metrics = super().run_epoch()
        self.spent += time.process_time() - began
        for site in self.sites:
            members = site.transplants.zoo
            work = lambda site=site, members=members: translate(site.translator, members)  # noqa: E731
            self.translating += seconds(work, time.process_time)
        measured = (self.begun, self.begun + self.spent, self.translating, own_mib())
        return metrics | dict(zip(MEASURED, measured, strict=True))


@dataclass(frozen=True)
class Unprepared(TranslatorTask):
    """Trials for which nothing is made before."""

    def prepared(self, device: str) -> Unprepared:
        return self


ARMS: dict[str, type[TranslatorTask]] = {"each": Unprepared, "once": TranslatorTask}


def search(arm: str, config: StudyConfig, zoo: Any, dataset: Any) -> dict[str, Any]:
    """Run one search; return trials an hour and the medians of what its trials measured."""
    with tempfile.TemporaryDirectory(prefix="kt-trial-cost-") as root, connected(RayConfig(cpus=config.search.trials)):
        workspace = Workspace.open(Path(root))
        tracker = Tracker(workspace.tracking_uri, "kt_ray", workspace.artifact_root)
        task = ARMS[arm](zoo, dataset, Measured, draws_mixture(config))
        began = time.perf_counter()
        run_search(config, workspace, task, tracker)
        taken = time.perf_counter() - began
        trials = SearchStudy(config, open_storage(workspace.study_storage, create=False)).trials()
    found = {name: [trial.user_attrs[METRICS][name] for trial in trials] for name in MEASURED}
    result = {name: statistics.median(values) for name, values in found.items()}
    shares = [a / b for a, b in zip(found["translating_seconds"], found["trial_seconds_cpu"], strict=True)]
    result |= {"trials_per_hour": 3600 * len(trials) / taken, "translating_share": statistics.median(shares)}
    result |= {"begin_seconds_first": max(found["begin_seconds"]), "translating_share_largest": max(shares)}
    print(arm, {name: round(value, 3) for name, value in result.items()}, flush=True)
    return result


def main() -> None:
    """Measure the pairs and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="study file whose trials are run")
    parser.add_argument("zoo", help="directory or URI of its zoo, built")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of searches")
    parser.add_argument("--trials", type=int, default=8, help="trials of a search, all at once")
    parser.add_argument("--epochs", type=int, help="of a trial, instead of the study's")
    parser.add_argument("--steps", type=int, help="optimiser steps of an epoch, instead of the study's")
    parser.add_argument("--members", type=int, default=4000, help="of the zoo whose copies are counted")
    arguments = parser.parse_args()
    content = read_study(arguments.study).model_dump(mode="json", by_alias=True)
    content["search"] |= {"trials": arguments.trials, "pruner": {"name": "none"}, "sampler": {"name": "random"}}
    lengths = {"epochs": arguments.epochs, "steps_per_epoch": arguments.steps}
    content["trial"]["training"] |= {name: value for name, value in lengths.items() if value}
    config = StudyConfig.model_validate(content)
    zoo, dataset = ZooStore(arguments.zoo).read(), load_dataset(config.dataset)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for number in range(arguments.rounds):
        for arm in list(ARMS)[:: 1 if number % 2 else -1]:
            results[arm].append(search(arm, config, zoo, dataset))
    finish(results, count_copies(8, arguments.members), arguments)


def middle_of(ratios: list[float]) -> str:
    """Return the median of `ratios` and their range."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def finish(results: dict[str, list[dict[str, Any]]], copies: dict[str, float], arguments: argparse.Namespace) -> None:
    """Write the result and its table."""
    pairs = [once["trials_per_hour"] / each["trials_per_hour"] for each, once in zip(*results.values(), strict=True)]
    saved = [a["trial_seconds_cpu"] / b["trial_seconds_cpu"] for a, b in zip(*results.values(), strict=True)]
    middle = {
        arm: {name: statistics.median(entry[name] for entry in entries) for name in entries[0]}
        for arm, entries in results.items()
    }
    headline = {
        "trials_per_hour_ratio": statistics.median(pairs),
        "trials_per_hour_ratio_least": min(pairs),
        "trials_per_hour_ratio_most": max(pairs),
        "trials_per_processor_hour_ratio": statistics.median(saved),
        "report_share": middle["once"]["translating_share"],
        "zoo_copies": copies["copies"],
        **{f"{name}_{arm}": values[name] for name in middle["once"] for arm, values in middle.items()},
    }
    heads = {"each worker makes its own": middle["each"], "made once": middle["once"]}
    rows = [
        {"measure": name.replace("_", " "), **{head: f"{values[name]:.3g}" for head, values in heads.items()}}
        for name in middle["once"]
    ]
    lines = [
        f"{arguments.trials} trials at once, {len(pairs)} pairs of searches; medians.",
        "",
        table(rows),
        "",
        f"Made once over each its own: trials an hour {middle_of(pairs)}, trials an hour of a processor "
        f"{middle_of(saved)}. Copies of a zoo of {arguments.members} members with eight trials: "
        f"{copies['copies']:.3f}.",
    ]
    write("trial_cost", headline, results, [0], "\n".join(lines), RESULTS)


if __name__ == "__main__":
    main()
