"""How many device-hours TPE with pruning needs for what random search finds, on a recorded table of real trials.

The table holds every point of the space of `search_quality.yaml`, trained once over a real zoo: its accuracy after
each epoch, and the CPU seconds that each took. A search on it is this project's own (`SearchStudy`: sampler, pruner,
reports) with the table in the place of training, so a suggestion always meets a trial that was trained, and no value is
made up. A point asked for twice costs twice.

For each seed, random search without pruning runs its trials to the end; the ratio is the device-hours until a complete
trial of the other search is as good as random search's best, over all the device-hours of random search. A search that
has not got there after `GIVE_UP` times those counts as infinite.

Random search with the same seed draws the very points among which the goal was found, so with pruning it always gets
there; so do the first trials of TPE. The fair comparison, `independent`, gives every search that looks for the goal
other draws, several times: seeds from each of `OTHERS` on. Two arms more on these draws: Hyperband over the epochs in
place of median pruning, and TPE that first tries the point of the bundled translator, as `--from
pretrained:basic_to_simple` does, as far as it lies in this space.

    kt-ray zoo build benchmarks/search_quality.yaml
    python benchmarks/search_quality.py --record    # 240 trials; goes on where it stopped
    python benchmarks/search_quality.py             # the searches
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import optuna
from common.results import RESULTS, write

from kt_ray.config import StudyConfig
from kt_ray.search.space import apply, to_optuna
from kt_ray.search.study import SearchStudy
from kt_ray.studies.extension import point_of_model
from kt_ray.studies.study_file import read_study
from kt_ray.studies.workspace import Workspace
from kt_ray.translation.bundled import TRANSLATORS

FOLDER = Path(__file__).parent
STUDY = FOLDER / "search_quality.yaml"
TABLE = RESULTS / "search_quality_trials.jsonl"
GIVE_UP = 4.0  # times random search's device-hours
OTHERS = (3000, 4000, 5000, 6000)  # added to a seed for draws that neither made the goal nor chose the defaults
SHARES = (0.25, 0.5, 1.0)  # of random search's device-hours at which the best so far is compared
SHIPPED = "pretrained:basic_to_simple"  # the translator from whose point warm searches start
HYPERBAND = {"pruner": {"name": "hyperband"}}  # with Optuna's defaults


@dataclass(frozen=True)
class Variant:
    """A kind of search: its name in the table, what differs from the study, and what is added to the seed."""

    words: str
    changes: dict[str, Any]
    offsets: tuple[int, ...] = OTHERS
    warm: bool = False

    def study(self, config: StudyConfig) -> StudyConfig:
        """Return `config` with the changes."""
        content = config.model_dump()
        content["search"] |= self.changes
        if self.warm:
            content["search"]["points"] = [point_of_model(TRANSLATORS.path(SHIPPED), config)]
        return StudyConfig.model_validate(content)


RANDOM: dict[str, Any] = {"sampler": {"name": "random"}}
UNPRUNED: dict[str, Any] = {"pruner": {"name": "none"}}
VARIANTS = {
    "tpe_pruning": Variant("TPE with median pruning", {}, (0,)),
    "tpe": Variant("TPE alone", UNPRUNED, (0,)),
    "random_pruning": Variant("random with pruning", RANDOM, (0,)),
    "tpe_pruning_independent": Variant("TPE with median pruning, other draws", {}),
    "random_pruning_independent": Variant("random with pruning, other draws", RANDOM),
    "tpe_hyperband_independent": Variant("TPE with Hyperband, other draws", HYPERBAND, OTHERS[:1]),
    "random_hyperband_independent": Variant("random with Hyperband, other draws", RANDOM | HYPERBAND, OTHERS[:1]),
    "tpe_pruning_warm_independent": Variant("TPE with median pruning, warm start, other draws", {}, warm=True),
}


@dataclass(frozen=True)
class Recorded:
    """A trial as it was trained: accuracy after each epoch, and CPU seconds of each."""

    accuracy: list[float]
    seconds: list[float]


Table = dict[str, Recorded]


def key(values: dict[str, Any]) -> str:
    """A point's name in the table."""
    return json.dumps(values, sort_keys=True)


def read_table(path: Path) -> Table:
    """The recorded trials by point."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {key(row["values"]): Recorded(row["accuracy"], row["seconds"]) for row in rows}


def record(config: StudyConfig, root: Path | None, path: Path) -> None:
    """Train the points that the table lacks, one line each; CPU time is counted, so a busy machine changes nothing."""
    import torch

    from kt_ray.data import load_dataset
    from kt_ray.translation.training import TranslatorTraining
    from kt_ray.zoo.store import ZooStore

    torch.set_num_threads(1)
    zoo, dataset = ZooStore(Workspace.open(root).zoo(config.zoo.name)).read(), load_dataset(config.dataset)
    present = read_table(path)
    points = list(to_optuna(config.space, config.trial).points())
    for number, values in enumerate(points, 1):
        if key(values) in present:
            continue
        training = TranslatorTraining(apply(config.trial, values), zoo, dataset)
        accuracy, seconds = [], []
        while not training.finished:
            began = time.process_time()
            accuracy.append(round(training.run_epoch()["accuracy_mean"], 6))
            seconds.append(round(time.process_time() - began, 4))
        with path.open("a") as file:
            file.write(json.dumps({"values": values, "accuracy": accuracy, "seconds": seconds}) + "\n")
        print(f"{number} of {len(points)}: {accuracy[-1]:.4f} in {sum(seconds):.1f} s", flush=True)


def searched(config: StudyConfig, table: Table, seed: int, budget: float, goal: float) -> list[tuple[float, float]]:
    """Device-seconds and best complete value after each trial.

    Ends with `config`'s trials where `budget` is infinite, else with the first trial at `goal` or past `budget`.
    """
    search = config.search.model_copy(update={"seed": seed})
    study = SearchStudy(config.model_copy(update={"search": search}), optuna.storages.InMemoryStorage())
    study.enqueue(config.search.points)
    spent, best = 0.0, -math.inf
    curve: list[tuple[float, float]] = []
    while len(curve) < config.search.trials if math.isinf(budget) else spent < budget and best < goal:
        candidate = study.ask()
        trial = table[key(candidate.values)]
        for epoch, (accuracy, seconds) in enumerate(zip(trial.accuracy, trial.seconds, strict=True), 1):
            spent += seconds
            metrics = {"accuracy_mean": accuracy}
            last = epoch == len(trial.accuracy)
            pruned = study.report(candidate, epoch, metrics) and not last
            if pruned:
                break
        study.end(candidate, metrics, sum(trial.seconds[:epoch]), pruned=pruned)
        best = best if pruned else max(best, accuracy)
        curve.append((spent, best))
    return curve


def best_at(curve: list[tuple[float, float]], spent: float) -> float:
    """The best complete value within `spent` device-seconds; 0 (an accuracy) before the first complete trial."""
    return max((best for seconds, best in curve if seconds <= spent and math.isfinite(best)), default=0.0)


def compare(config: StudyConfig, table: Table, seed: int) -> dict[str, Any]:
    """Random search to its end, then how soon the others are as good, each with the same seed."""
    random_search = searched(Variant("", RANDOM | UNPRUNED).study(config), table, seed, math.inf, math.inf)
    spent, goal = random_search[-1]
    result: dict[str, Any] = {"seed": seed, "random": {"seconds": spent, "best": goal}}
    result["random"]["shares"] = {share: best_at(random_search, share * spent) for share in SHARES}
    for name, variant in VARIANTS.items():
        result[name], study = [], variant.study(config)
        for offset in variant.offsets:
            curve = searched(study, table, seed + offset, GIVE_UP * spent, goal)
            ratio = curve[-1][0] / spent if curve[-1][1] >= goal else None
            shares = {share: best_at(curve, share * spent) for share in SHARES}
            result[name].append({"ratio": ratio, "trials": len(curve), "shares": shares})
    return result


def ratios_of(results: list[dict[str, Any]], name: str) -> list[float]:
    """Return the ratios of all searches of a variant, infinite where one was given up."""
    return [math.inf if search["ratio"] is None else search["ratio"] for entry in results for search in entry[name]]


def over_random(results: list[dict[str, Any]], name: str, random: str) -> float:
    """Return the device-hours of the searches `name` over those of the `random` ones, the median over all pairs.

    A search that was given up has spent more than `GIVE_UP`, which stands for what it would have needed.
    """
    pairs = zip(ratios_of(results, name), ratios_of(results, random), strict=True)
    return statistics.median(min(found, GIVE_UP) / min(other, GIVE_UP) for found, other in pairs)


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of `values` lie, without interpolation (some are infinite)."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def main() -> None:
    """Record, or search the record and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="train what the table lacks, and end")
    parser.add_argument("--workspace", type=Path, help="where the zoo lies")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    config = read_study(STUDY)
    if options.record:
        record(config, options.workspace, options.table)
        return
    table = read_table(options.table)
    results = []
    for seed in range(options.seeds):
        results.append(compare(config, table, seed))
        print({name: [round(ratio, 3) for ratio in ratios_of(results[-1:], name)] for name in VARIANTS}, flush=True)
    finish(results, table, config, options)


def finish(results: list[dict[str, Any]], table: Table, config: StudyConfig, options: argparse.Namespace) -> None:
    """Write the result."""
    names = tuple(VARIANTS)
    ratios = {name: ratios_of(results, name) for name in names}
    headline: dict[str, float] = {
        "device_hours_ratio": statistics.median(ratios["tpe_pruning"]),
        "device_hours_ratio_lower_quartile": quantile(ratios["tpe_pruning"], 0.25),
        "device_hours_ratio_upper_quartile": quantile(ratios["tpe_pruning"], 0.75),
        "seeds": len(results),
        "seeds_within_half": sum(ratio <= 0.5 for ratio in ratios["tpe_pruning"]),
        "seeds_never": sum(math.isinf(ratio) for ratio in ratios["tpe_pruning"]),
        "device_hours_ratio_without_pruning": statistics.median(ratios["tpe"]),
        "device_hours_ratio_random_with_pruning": statistics.median(ratios["random_pruning"]),
        "device_hours_ratio_same_pruning": over_random(results, "tpe_pruning", "random_pruning"),
        "device_hours_ratio_same_pruning_independent": over_random(
            results, "tpe_pruning_independent", "random_pruning_independent"
        ),
        "device_hours_ratio_independent": statistics.median(ratios["tpe_pruning_independent"]),
        "device_hours_ratio_random_independent": statistics.median(ratios["random_pruning_independent"]),
        "tpe_median_over_random_median_independent": statistics.median(ratios["tpe_pruning_independent"])
        / statistics.median(ratios["random_pruning_independent"]),
    }
    for name in ("tpe_hyperband", "random_hyperband", "tpe_pruning_warm"):
        headline[f"device_hours_ratio_{name}_independent"] = statistics.median(ratios[f"{name}_independent"])
    final = [trial.accuracy[-1] for trial in table.values()]
    points = {
        "points": len(table),
        "cpu_hours": sum(sum(trial.seconds) for trial in table.values()) / 3600,
        "accuracy_best": max(final),
        "accuracy_median": statistics.median(final),
        "accuracy_worst": min(final),
    }
    search = config.search.model_dump(mode="json", include={"trials", "sampler", "pruner"})
    seeds = [entry["seed"] for entry in results]
    lines = [
        "| search | device-hours until as good as random search's best, median (quartiles) | searches within half |"
    ]
    lines.append("|---|---|---|")
    for name in names:
        median, low, high = statistics.median(ratios[name]), quantile(ratios[name], 0.25), quantile(ratios[name], 0.75)
        half = sum(ratio <= 0.5 for ratio in ratios[name])
        lines.append(
            f"| {VARIANTS[name].words} | {median:.2f} ({low:.2f} to {high:.2f}) | {half} of {len(ratios[name])} |"
        )
    write("search_quality", headline, results, seeds, "\n".join(lines), options.output, recorded=points, search=search)
    print(json.dumps(headline, indent=1))


if __name__ == "__main__":
    main()
