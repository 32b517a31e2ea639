"""A study's content, read from its storage alone: also while another process searches."""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kt_ray._io.urls import redacted
from kt_ray.config.study import Constraint
from kt_ray.errors import StudyError
from kt_ray.search.integrity import check_trials, search_of
from kt_ray.search.lease import holder_of
from kt_ray.search.retries import (
    METRICS,
    REASON,
    SECONDS,
    STEP,
    lineage_of,
    lineages,
    retries_of,
    select_champion,
    violated_constraints,
)
from kt_ray.search.storage import open_storage, study_names

LAST_FACT = "reason"


@dataclass(frozen=True)
class StudySummary:
    """Counts of trials by state, the champion, and what it all cost.

    `trials` is how many were asked for last. `device_hours` are hours of GPUs, or of CPUs for trials without a GPU, as
    `device` says. `driver` is who searches now, if anybody does.
    """

    name: str
    trials: int | None
    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int
    best_trial: int | None
    best_value: float | None
    best_params: dict[str, Any]
    device_hours: float
    device: str
    driver: str | None
    last_change: datetime | None

    def row(self) -> dict[str, Any]:
        """For a table: one study a row."""
        row = asdict(self)
        del row["best_params"]
        row["last_change"] = f"{self.last_change:%Y-%m-%d %H:%M:%S}" if self.last_change else None
        return {name.replace("_", " "): value for name, value in row.items()}


def load_study(url: str, name: str) -> optuna.Study:
    """Return the study `name` in the storage at `url`.

    Raises StudyError if it is missing, naming what there is, or if it does not hold what was written.
    """
    storage = open_storage(url, create=False)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
        search_of(study)
        check_trials(study.get_trials(deepcopy=False))
        return study
    except KeyError:
        known = ", ".join(sorted(optuna.get_all_study_names(storage))) or "none"
        raise StudyError(f"no study {name!r} in {redacted(url)}; there are: {known}") from None


def summarise(study: optuna.Study) -> StudySummary:
    """Count the lineages of `study` by the state of their last trial."""
    last = lineages(study.get_trials(deepcopy=False))
    counts = {state: sum(trial.state is state for trial in last.values()) for state in TrialState}
    best = select_champion(study)
    search = search_of(study)
    holder = holder_of(study)
    seconds = sum(float(trial.user_attrs.get(SECONDS, 0.0)) for trial in last.values())
    changes = [trial.datetime_complete or trial.datetime_start for trial in last.values()]
    return StudySummary(
        name=study.study_name,
        trials=search.get("trials"),
        complete=counts[TrialState.COMPLETE],
        pruned=counts[TrialState.PRUNED],
        failed=counts[TrialState.FAIL],
        running=counts[TrialState.RUNNING],
        waiting=counts[TrialState.WAITING],
        best_trial=lineage_of(best) if best else None,
        best_value=best.values[0] if best else None,
        best_params=dict(best.params) if best else {},
        device_hours=seconds * search.get("devices", 1.0) / 3600,
        device=search.get("device", "CPU"),
        driver=None if holder is None or holder.gone() else str(holder),
        last_change=max((change for change in changes if change is not None), default=None),
    )


def summaries(url: str, name: str | None = None) -> list[StudySummary]:
    """Every study in the storage at `url`, or the one called `name`."""
    names = [name] if name is not None else study_names(url)
    return [summarise(load_study(url, entry)) for entry in names]


def trial_rows(url: str, name: str) -> list[dict[str, Any]]:
    """One row a trial (a lineage): number, state, objectives, epochs, tries, device-hours, reason, parameters."""
    return rows_of(load_study(url, name))


def rows_of(study: optuna.Study) -> list[dict[str, Any]]:
    last = lineages(study.get_trials(deepcopy=False))
    return [row(study, lineage, trial, _paths(last.values())) for lineage, trial in sorted(last.items())]


def varied_parameters(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the parameters of trials, those with the most different values first; of as many, the widest spread."""
    names = list(rows[0])
    parameters = names[names.index(LAST_FACT) + 1 :]

    def variation(path: str) -> tuple[int, float]:
        values = [row[path] for row in rows if row[path] is not None]
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        mean = statistics.fmean(map(abs, numbers)) if numbers else 0.0
        return len(set(values)), statistics.pstdev(numbers) / mean if mean else 0.0

    return sorted(parameters, key=variation, reverse=True)


def row(study: optuna.Study, lineage: int, trial: FrozenTrial, paths: Sequence[str]) -> dict[str, Any]:
    """Return a trial as a row of a table, in which the parameters `paths` follow `LAST_FACT`."""
    search = search_of(study)
    names = search.get("metrics", [])
    values = _values(trial)
    objectives = dict(zip(names[1:], values[1:], strict=False)) if values else {}
    seconds = trial.user_attrs.get(SECONDS)
    return {
        "trial": lineage,
        "state": trial.state.name,
        "value": values[0] if values else None,
        **{name: objectives.get(name) for name in names[1:]},
        "epochs": trial.user_attrs.get(STEP, trial.last_step),
        "tries": 1 + len(retries_of(trial)),
        "seconds": seconds,
        "device_hours": None if seconds is None else seconds * search.get("devices", 1.0) / 3600,
        LAST_FACT: trial.user_attrs.get(REASON) if trial.state is TrialState.FAIL else None,
        **{path: trial.params.get(path) for path in paths},
    }


def no_champion(study: optuna.Study) -> StudyError:
    """Return why the study has no best trial: none is complete, or none keeps the constraints."""
    name = study.study_name
    constraints = [Constraint.model_validate(text) for text in search_of(study).get("constraints", [])]
    last = lineages(study.get_trials(deepcopy=False)).values()
    complete = [trial for trial in last if trial.state is TrialState.COMPLETE]
    if not complete:
        return StudyError(f"no trial of {name} is complete; `kt-ray trials {name}` shows their states and reasons")

    def excess(trial: FrozenTrial) -> float:
        return sum(max(bound.excess(trial.user_attrs.get(METRICS, {})), 0.0) for bound in constraints)

    nearest = min(complete, key=excess)
    metrics = nearest.user_attrs.get(METRICS, {})
    broken = ", ".join(
        f"{bound} (it has {metrics.get(bound.metric, 'no such metric')})"
        for bound in violated_constraints(nearest, constraints)
    )
    return StudyError(
        f"no trial of {name} keeps the constraints; the nearest of {len(complete)} complete ones, trial "
        f"{lineage_of(nearest)}, breaks {broken}; loosen `search.constraints`, or add trials"
    )


def best_trial(url: str, name: str) -> dict[str, Any]:
    """Number, value and parameters of the champion. Raises StudyError if no trial is complete."""
    study = load_study(url, name)
    best = select_champion(study)
    if best is None:
        raise no_champion(study)
    return {"trial": lineage_of(best), "value": best.values[0], "params": dict(best.params)}


def pareto_rows(url: str, name: str) -> list[dict[str, Any]]:
    """The trials within the constraints that no other beats in every objective, as rows; the best first one first."""
    study = load_study(url, name)
    rows = front_of(study)
    if not rows:
        raise no_champion(study)
    return rows


def front_of(study: optuna.Study) -> list[dict[str, Any]]:
    """Return the rows of `pareto_rows`, none if no trial is complete."""
    front = [trial for trial in study.best_trials if trial.state is TrialState.COMPLETE]
    rows = [row(study, lineage_of(trial), trial, _paths(front)) for trial in front]
    falling = study.directions[0] is StudyDirection.MAXIMIZE
    return sorted(rows, key=lambda entry: float(entry["value"]), reverse=falling)


def importance_rows(url: str, name: str, objective: int = 0) -> list[dict[str, Any]]:
    """Return the share of an objective's variance that each parameter explains (Optuna's evaluator), most first.

    Parameters that only some trials have are left out. Raises StudyError for fewer than two complete trials.
    """
    study = load_study(url, name)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 2:
        raise StudyError(f"importance needs two complete trials or more; {name} has {len(complete)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            study,
            target=lambda trial: trial.values[objective],
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
        )
    return [{"parameter": path, "importance": float(value)} for path, value in found.items()]


def export_trials(url: str, name: str, path: Path) -> int:
    """Write the trials' rows to `path` as CSV, Parquet or JSON, by its suffix. Returns how many.

    Raises StudyError for another suffix.
    """
    rows = trial_rows(url, name)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1) + "\n")
        return len(rows)
    import pyarrow as pa
    from pyarrow import csv, parquet

    columns = list(rows[0]) if rows else []
    table = pa.table({column: _column([entry[column] for entry in rows]) for column in columns})
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    elif path.suffix == ".csv":
        csv.write_csv(table, path)
    else:
        raise StudyError(f"{path}: a study is exported as .csv, .parquet or .json, by the file's suffix")
    return len(rows)


def _column(values: list[Any]) -> Any:
    """An Arrow array; of text where kinds are mixed, as in a path of several types."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])


def _paths(trials: Iterable[FrozenTrial]) -> list[str]:
    return sorted({path for trial in trials for path in trial.params})


def _values(trial: FrozenTrial) -> list[float]:
    """The objectives' values; the last one reported for a trial that has no end."""
    if trial.values:
        return [float(value) for value in trial.values]
    return [trial.intermediate_values[trial.last_step]] if trial.last_step is not None else []
