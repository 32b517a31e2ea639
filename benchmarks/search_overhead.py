"""What a search costs beside its trials: this project's against Ray Tune with OptunaSearch and MLflow's callback.

Trials train nothing. Both searches use the same space, TPE seed, concurrency and machine, each in processes and
databases of its own, and alternate. Further: the driver's memory as trials pass, the time of one ask with many finished
trials, and how many copies of a zoo lie in memory with one and with eight translators in training at once.

Each measurement is kept as soon as it is made, so a run that is cut short goes on with the next one.

    python benchmarks/search_overhead.py --trials 1000 --rounds 2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from common.markdown import table
from common.memory import resident_mib
from common.parts import Parts
from common.processes import apart
from common.results import RESULTS, write
from common.stand_in import StandIn
from common.zoo_copies import count_copies

from kt_ray.config import DatasetConfig, MemberCounts, RayConfig, StudyConfig
from kt_ray.data import load_dataset
from kt_ray.jobs.connection import connected
from kt_ray.networks import PaperArchitecture
from kt_ray.search.budget import SearchProgress
from kt_ray.search.runner import run_search
from kt_ray.search.storage import open_storage
from kt_ray.search.study import SearchStudy
from kt_ray.studies.workspace import Workspace
from kt_ray.tracking.tracker import Tracker
from kt_ray.translation.task import TranslatorTask
from kt_ray.zoo.untrained import untrained_zoo

EPOCHS = 3
MB = 2**20 / 1e6  # in a MiB
DATASET = DatasetConfig(name="mnist5k", train_images=200, selection_images=100)


class Nothing(StandIn):
    """In the place of a translator's training: an accuracy that follows from the values, at once."""

    epochs = EPOCHS

    def run_epoch(self) -> dict[str, float]:
        """Nothing."""
        self.epoch += 1
        return {"accuracy_mean": accuracy(self.config.training.learning_rate, self.epoch), "loss": 0.0}


def accuracy(learning_rate: float, epoch: int) -> float:
    """The same for both sides."""
    return epoch / EPOCHS - learning_rate


def config_of(trials: int) -> StudyConfig:
    """A study of one value, without pruning: each trial reports every epoch on both sides."""
    return StudyConfig.model_validate(
        {
            "name": "overhead",
            "space": {"training.learning_rate": {"float": [1e-5, 1e-1], "log": True}},
            "search": {"trials": trials, "concurrency": 2, "pruner": {"name": "none"}},
        }
    )


def ours(root: Path, trials: int) -> dict[str, Any]:
    """This project's search; memory of the driver at every tenth of it."""
    workspace = Workspace.open(root)
    tracker = Tracker(workspace.tracking_uri, "kt_ray", workspace.artifact_root)
    zoo = untrained_zoo(PaperArchitecture("basic_to_simple"), MemberCounts(train=4, selection=2, test=1))
    resident: dict[int, float] = {}

    def on_progress(progress: SearchProgress) -> None:
        if progress.done % max(trials // 10, 1) == 0:
            resident.setdefault(progress.done, resident_mib() * MB)

    with connected(RayConfig(cpus=2)):
        began = time.monotonic()
        task = TranslatorTask(zoo, load_dataset(DATASET), Nothing)
        run_search(config_of(trials), workspace, task, tracker, on_progress)
        seconds = time.monotonic() - began
    return {"seconds": seconds, "driver_mb": resident}


def bare(root: Path, trials: int) -> dict[str, Any]:
    """Ray Tune as its documentation has it: a function, OptunaSearch on SQLite, MLflow's callback; actors reused."""
    import optuna
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    root.mkdir(parents=True)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"

    def train(config: dict[str, float]) -> None:
        for epoch in range(1, EPOCHS + 1):
            tune.report({"accuracy_mean": accuracy(config["learning_rate"], epoch), "loss": 0.0})

    storage = optuna.storages.RDBStorage(f"sqlite:///{root}/optuna.db")
    logger = MLflowLoggerCallback(tracking_uri=f"sqlite:///{root}/mlflow.db", experiment_name="bare")
    with connected(RayConfig(cpus=2)):
        began = time.monotonic()
        tune.Tuner(
            train,
            param_space={"learning_rate": tune.loguniform(1e-5, 1e-1)},
            tune_config=tune.TuneConfig(
                metric="accuracy_mean",
                mode="max",
                num_samples=trials,
                max_concurrent_trials=2,
                search_alg=OptunaSearch(sampler=optuna.samplers.TPESampler(seed=0), storage=storage),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(storage_path=str(root), verbose=0, callbacks=[logger]),
        ).fit()
        seconds = time.monotonic() - began
    return {"seconds": seconds, "driver_mb": {trials: resident_mib() * MB}}


SIDES = {"ours": ours, "bare": bare}


def side(name: str, root: Path, trials: int) -> dict[str, Any]:
    """One search, in a process of its own."""
    os.chdir(root.parent)
    result = SIDES[name](root, trials)
    print(f"{name}: {60 * trials / result['seconds']:.1f} trials a minute", flush=True)
    return result


def time_asks(finished: int) -> dict[str, float]:
    """Milliseconds of one ask, on SQLite, with few and with `finished` trials behind it."""
    with tempfile.TemporaryDirectory() as scratch:
        study = SearchStudy(config_of(finished), open_storage(f"sqlite:///{scratch}/optuna.db"))
        times = []
        for _ in range(finished + 10):
            began = time.perf_counter()
            candidate = study.ask()
            times.append(1000 * (time.perf_counter() - began))
            value = accuracy(candidate.values["training.learning_rate"], EPOCHS)
            study.end(candidate, {"accuracy_mean": value}, 0.0, pruned=False)
    return {"after_20": statistics.median(times[15:25]), f"after_{finished}": statistics.median(times[-10:])}


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--members", type=int, default=4000, help="of the zoo whose copies are counted")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.output.mkdir(exist_ok=True)
    parts = Parts(options.output / f".search_overhead-{options.trials}-{options.members}.json")
    with tempfile.TemporaryDirectory(prefix="kt-overhead-") as scratch:
        for number in range(options.rounds):
            for name in list(SIDES)[:: -1 if number % 2 else 1]:
                root = Path(scratch) / f"{name}-{number}"
                parts.once(f"{name} {number}", apart, side, name, root, options.trials)
    parts.once("ask_ms", time_asks, options.trials)
    for at_once in (1, 8):
        parts.once(f"zoo {at_once}", count_copies, at_once, options.members)
    results = {name: [parts.made[f"{name} {number}"] for number in range(options.rounds)] for name in SIDES}
    results |= {"ask_ms": parts.made["ask_ms"], "zoo": {at_once: parts.made[f"zoo {at_once}"] for at_once in (1, 8)}}
    finish(results, options)
    parts.path.unlink()


def finish(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the result."""
    rate = {side: statistics.median(60 * options.trials / run["seconds"] for run in results[side]) for side in SIDES}
    resident = [values for entry in results["ours"] if len(values := list(entry["driver_mb"].values())) > 1]
    headline = {
        "trials_per_minute_ratio": rate["ours"] / rate["bare"],
        "trials_per_minute": rate["ours"],
        "trials_per_minute_bare": rate["bare"],
        "zoo_copies": results["zoo"][8]["copies"],
        **({"driver_mb_growth": statistics.median(values[-1] - values[1] for values in resident)} if resident else {}),
        **{f"ask_ms_{name}": value for name, value in results["ask_ms"].items()},
    }
    rows = [{"measure": name.replace("_", " "), "value": f"{value:.2f}"} for name, value in headline.items()]
    write("search_overhead", headline, results, [0], table(rows), options.output)
    print(json.dumps(headline, indent=1))


if __name__ == "__main__":
    main()
