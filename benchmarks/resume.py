"""Searches killed at random moments and taken up again: is a finished trial lost, repeated, or told twice?

What a trial trains is arithmetic that takes 0.3 s an epoch, for the search is what is tested here. Each search has a
seed of its own and runs twice: once never interrupted, once with kills of four kinds (the driver by SIGKILL, the driver
by SIGTERM, the worker by SIGKILL, its node removed without notice) at random moments, on a Ray cluster of two nodes
that outlives the drivers. Every epoch that a worker begins is counted in a file, so that repeated work shows.

    python benchmarks/resume.py --searches 3 --kills 9
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "token")

import mlflow
import optuna
from common.ray_cluster import local_cluster, loopback_only
from common.results import RESULTS, write
from common.stand_in import StandIn
from optuna.trial import FrozenTrial, TrialState

from kt_ray.config import DatasetConfig, MemberCounts, RayConfig, StudyConfig, TrialConfig
from kt_ray.data import Dataset, load_dataset
from kt_ray.jobs.connection import connected
from kt_ray.networks import PaperArchitecture
from kt_ray.search.retries import lineages
from kt_ray.search.runner import run_search
from kt_ray.search.storage import open_storage
from kt_ray.studies.workspace import Workspace
from kt_ray.tracking.tracker import Tracker
from kt_ray.translation.task import TranslatorTask
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.untrained import untrained_zoo

KINDS = ("SIGKILL of the driver", "SIGTERM to the driver", "SIGKILL of the worker", "node removed")
DATASET = DatasetConfig(name="mnist5k", train_images=1000, selection_images=200)
MEMBERS = MemberCounts(train=12, selection=4, test=1)
EPOCHS = 6
SLEEP = 0.3  # seconds of an epoch of arithmetic
WAIT = 400.0  # seconds without an epoch before something is held to be broken


class Arithmetic(StandIn):
    """In the place of a translator's training: accuracy that follows from the values, and sleep.

    Each epoch builds on the one before through its saved state, so that a wrong resume shows in the numbers. A line in
    `log` for every epoch it begins says which trial, which epoch, which process.
    """

    epochs = EPOCHS

    def __init__(self, log: Path, config: TrialConfig, zoo: Zoo, dataset: Dataset, *where: Any) -> None:
        super().__init__(config, zoo, dataset, *where)
        self.log, self.trial = log, hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]

    def run_epoch(self) -> dict[str, float]:
        """Sleep, and rise towards what learning rate and noise allow."""
        self.epoch += 1
        with self.log.open("a") as file:
            file.write(f"{self.trial} {self.epoch} {os.getpid()}\n")
        time.sleep(SLEEP)
        rate = abs(math.log10(self.config.training.learning_rate) + 3) / 2
        noise = self.config.augmentation.noise.std
        wobble = random.Random(f"{rate} {noise} {self.epoch}").uniform(-0.02, 0.02)
        self.state = 0.6 * self.state + 0.4 * (math.exp(-rate) - noise) + wobble
        return {"accuracy_mean": self.state, "loss": 1 - self.state}


def study_config(seed: int, trials: int) -> StudyConfig:
    """A small search with pruning, one trial at a time."""
    return StudyConfig.model_validate(
        {
            "name": f"resume-{seed}",
            "dataset": DATASET.model_dump(),
            "trial": {"training": {"epochs": EPOCHS}},
            "space": {
                "translator.family": {"categorical": ["mixer", "neuron_transformer"]},
                "training.learning_rate": {"float": [1e-5, 1e-1], "log": True},
                "augmentation.noise.std": {"float": [0.0, 0.3]},
            },
            "search": {
                "trials": trials,
                "seed": seed,
                "concurrency": 1,
                "retries": 1000,
                "sampler": {"name": "tpe", "options": {"n_startup_trials": 6}},
                "pruner": {"name": "median", "options": {"n_startup_trials": 4, "n_warmup_steps": 1}},
            },
        }
    )


def drive(root: Path, seed: int, trials: int, address: str) -> None:
    """One driver, in a process of its own: brings the search at `root` to its end, or is killed on the way."""
    loopback_only()  # as the cluster
    workspace, config = Workspace.open(root), study_config(seed, trials)
    tracker = Tracker(workspace.tracking_uri, config.project, workspace.artifact_root)
    zoo = untrained_zoo(PaperArchitecture("basic_to_simple"), MEMBERS)
    with connected(RayConfig(address=address)):
        make = partial(Arithmetic, root / "epochs.log")
        run_search(config, workspace, TranslatorTask(zoo, load_dataset(DATASET), make), tracker)


@dataclass
class Searched:
    """A search in a workspace of its own, and the driver that runs it."""

    root: Path
    seed: int
    trials: int
    address: str
    driver: subprocess.Popen[bytes] | None = None
    starts: int = 0
    finished: dict[int, tuple[Any, ...]] = field(default_factory=dict)

    def start(self) -> None:
        """A driver, unless one runs."""
        if self.driver is None or self.driver.poll() is not None:
            command = [sys.executable, __file__, "--drive", str(self.root)]
            command += [str(self.seed), str(self.trials), self.address]
            self.root.mkdir(parents=True, exist_ok=True)
            with (self.root / "driver.log").open("ab") as log:
                self.driver = subprocess.Popen(command, stdout=log, stderr=log)
            self.starts += 1

    def epochs(self) -> list[tuple[str, int, int]]:
        """Every epoch begun: trial, number, process."""
        path = self.root / "epochs.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(trial, int(epoch), int(pid)) for trial, epoch, pid in (line.split() for line in lines)]

    def wait_for_epochs(self, count: int) -> bool:
        """Until `count` further epochs are begun; False where the search ended before."""
        assert self.driver is not None
        have, deadline = len(self.epochs()), time.monotonic() + WAIT
        while len(self.epochs()) < have + count:
            if self.driver.poll() is not None:
                self.check_ended()
                return False
            if time.monotonic() > deadline:
                raise RuntimeError("no epoch is begun any more")
            time.sleep(0.02)
        return True

    def finish(self) -> None:
        """Run to the end."""
        self.start()
        self.check_ended()

    def check_ended(self) -> None:
        """Wait until the driver has ended. Raises RuntimeError unless it ended well."""
        assert self.driver is not None
        if self.driver.wait(timeout=1500) != 0:
            raise RuntimeError(f"the driver failed:\n{(self.root / 'driver.log').read_text()[-2000:]}")

    def all_trials(self) -> list[FrozenTrial]:
        """Every Optuna trial."""
        storage = open_storage(Workspace(self.root).study_storage)
        return optuna.load_study(study_name=f"resume-{self.seed}", storage=storage).trials

    def note_finished(self) -> None:
        """Remember the trials that are finished now."""
        for lineage, trial in lineages(self.all_trials()).items():
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                self.finished.setdefault(lineage, result_of(trial))


def result_of(trial: FrozenTrial) -> tuple[Any, ...]:
    """What a finished trial said."""
    return trial.state.name, trial.number, trial.values, trial.params, trial.intermediate_values


def outcome(searched: Searched) -> list[tuple[Any, ...]]:
    """What a search found, whatever happened on the way: results in the order in which trials were drawn."""
    last = lineages(searched.all_trials())
    return [
        (trial.state.name, trial.values, trial.params, trial.intermediate_values) for _, trial in sorted(last.items())
    ]


def interrupt(searched: Searched, kills: int, cluster: Any, generator: random.Random) -> list[dict[str, Any]]:
    """Kill `kills` times at random moments, then run to the end. Returns what each kill hit."""
    kinds = [KINDS[index % len(KINDS)] for index in range(kills)]
    generator.shuffle(kinds)
    told = []
    for kind in kinds:
        searched.start()
        if not searched.wait_for_epochs(generator.randint(1, 6)):
            break
        time.sleep(generator.uniform(0.0, 0.5))
        assert searched.driver is not None
        before = searched.epochs()
        if searched.driver.poll() is not None:
            break
        if kind == KINDS[0]:
            searched.driver.kill()
            searched.driver.wait()
        elif kind == KINDS[1]:
            searched.driver.send_signal(signal.SIGTERM)
            searched.driver.wait(timeout=120)
        elif kind == KINDS[2]:
            os.kill(before[-1][2], signal.SIGKILL)
        else:
            cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
            cluster.add_node(**NODE)
        searched.note_finished()
        told.append({"kind": kind, "epochs_begun_before": len(before), "finished_trials": len(searched.finished)})
        print(f"  {kind}: {len(before)} epochs begun, {len(searched.finished)} trials finished", flush=True)
    searched.finish()
    return told


NODE = {"num_cpus": 2, "resources": {"slot": 2}, "object_store_memory": 200_000_000}


def assess(whole: Searched, cut: Searched, kills: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare a search that was killed with one that was not."""
    trials = cut.all_trials()
    last = lineages(trials)
    states = [trial.state for trial in last.values()]
    now = {lineage: result_of(trial) for lineage, trial in last.items()}
    epochs = [(trial, epoch) for trial, epoch, _ in cut.epochs()]
    client = mlflow.MlflowClient(Workspace(cut.root).tracking_uri)
    experiment = client.get_experiment_by_name("kt_ray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`kt_ray.kind` = 'trial'", max_results=5000)
    best = [
        max(trial.values[0] for trial in lineages(side.all_trials()).values() if trial.values) for side in (whole, cut)
    ]
    return {
        "seed": cut.seed,
        "trials": len(last),
        "pruned": states.count(TrialState.PRUNED),
        "kills": kills,
        "driver_starts": cut.starts,
        "lost": sum(now.get(lineage, ("",))[0] != result[0] for lineage, result in cut.finished.items()),
        "repeated": sum(now.get(lineage) != result for lineage, result in cut.finished.items()),
        "zombies": sum(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in trials),
        "duplicate_runs": len(runs) - len(last),
        "runs_not_ended": sum(run.info.status not in ("FINISHED", "KILLED") for run in runs),
        "epochs_needed": len(set(epochs)),
        "epochs_repeated": len(epochs) - len(set(epochs)),
        "best_uninterrupted": best[0],
        "best": best[1],
        "equal_trial_by_trial": outcome(whole) == outcome(cut),
    }


def main() -> None:
    """Run, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--searches", type=int, default=3)
    parser.add_argument("--kills", type=int, default=9, help="in each search")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--drive", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        root, seed, trials, address = options.drive
        drive(Path(root), int(seed), int(trials), address)
        return

    generator = random.Random(options.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kt-resume-") as scratch:
        root, results = Path(scratch), []
        with local_cluster(NODE) as cluster:
            for seed in range(options.seed, options.seed + options.searches):
                common = (seed, options.trials, cluster.address)
                whole, cut = Searched(root / f"whole-{seed}", *common), Searched(root / f"cut-{seed}", *common)
                whole.finish()
                print(f"search {seed}: uninterrupted done", flush=True)
                kills = interrupt(cut, options.kills, cluster, generator)
                results.append(assess(whole, cut, kills))
                print({key: value for key, value in results[-1].items() if key != "kills"}, flush=True)
    headline = headline_of(results)
    seeds = [result["seed"] for result in results]
    write("resume", headline, results, seeds, table_of(results), options.output, seconds=time.monotonic() - began)
    print(json.dumps(headline, indent=1))


def headline_of(results: list[dict[str, Any]]) -> dict[str, float]:
    """Return the sums over the searches."""
    kills = sum(len(result["kills"]) for result in results)
    total = {key: sum(result[key] for result in results) for key in ("lost", "repeated", "zombies", "duplicate_runs")}
    return {
        "kills": kills,
        **total,
        "epochs_repeated_per_kill": sum(result["epochs_repeated"] for result in results) / max(kills, 1),
        "searches_equal_trial_by_trial": sum(result["equal_trial_by_trial"] for result in results),
        "searches": len(results),
    }


def table_of(results: list[dict[str, Any]]) -> str:
    """Return a row a search as Markdown."""
    columns = ["search", "kills", "finished trials lost", "repeated", "left running", "MLflow runs too many"]
    columns += ["epochs repeated", "equal to uninterrupted"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for result in results:
        lines.append(
            f"| seed {result['seed']}, {result['trials']} trials, {result['pruned']} pruned | {len(result['kills'])} | "
            f"{result['lost']} | {result['repeated']} | {result['zombies']} | {result['duplicate_runs']} | "
            f"{result['epochs_repeated']} of {result['epochs_needed']} | "
            f"{'yes' if result['equal_trial_by_trial'] else 'no'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
