"""Searches of arithmetic in workspaces of their own, whose drivers are processes that can be killed."""

from __future__ import annotations

import hashlib
import math
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from common.ray_cluster import loopback_only
from common.stand_in import StandIn
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
    """A search in a workspace of its own, and the driver that runs it: this script again, with `--drive`."""

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
            command = [sys.executable, sys.argv[0], "--drive", str(self.root)]
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
