"""Searches killed at random moments and taken up again: is a finished trial lost, repeated, or told twice?

What a trial trains is arithmetic that takes 0.3 s an epoch, for the search is what is tested here. Each search has a
seed of its own and runs twice: once never interrupted, once with kills of four kinds (the driver by SIGKILL, the driver
by SIGTERM, the worker by SIGKILL, its node removed without notice) at random moments, on a Ray cluster of two nodes
that outlives the drivers. Every epoch that a worker begins is counted in a file, so that repeated work shows.

    python benchmarks/resume.py --searches 3 --kills 9
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "token")

import mlflow
from common.driven_search import Searched, drive, result_of
from common.markdown import table
from common.ray_cluster import local_cluster
from common.results import RESULTS, write
from optuna.trial import TrialState

from kt_ray.search.retries import lineages
from kt_ray.studies.workspace import Workspace

KINDS = ("SIGKILL of the driver", "SIGTERM to the driver", "SIGKILL of the worker", "node removed")
NODE = {"num_cpus": 2, "resources": {"slot": 2}, "object_store_memory": 200_000_000}


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
    write(
        "resume",
        headline,
        results,
        seeds,
        table([row_of(result) for result in results]),
        options.output,
        seconds=time.monotonic() - began,
    )
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


def row_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a search."""
    return {
        "search": f"seed {result['seed']}, {result['trials']} trials, {result['pruned']} pruned",
        "kills": len(result["kills"]),
        "finished trials lost": result["lost"],
        "repeated": result["repeated"],
        "left running": result["zombies"],
        "MLflow runs too many": result["duplicate_runs"],
        "epochs repeated": f"{result['epochs_repeated']} of {result['epochs_needed']}",
        "equal to uninterrupted": "yes" if result["equal_trial_by_trial"] else "no",
    }


if __name__ == "__main__":
    main()
