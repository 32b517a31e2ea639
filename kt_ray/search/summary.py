"""What a study holds, read from its storage alone: also while another process searches."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kt_ray.errors import StudyError
from kt_ray.search.storage import open_storage, shown
from kt_ray.search.study import REASON, SECONDS, STEP, lineages


@dataclass(frozen=True)
class StudySummary:
    """Counts of trials by state, and the best complete one. `trial_hours` is the time of workers on trials."""

    name: str
    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int
    best_trial: int | None
    best_value: float | None
    best_params: dict[str, Any]
    trial_hours: float
    last_change: datetime | None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def row(self) -> dict[str, Any]:
        """For a table: one study a row."""
        row = self.to_dict()
        del row["best_params"]
        row["last_change"] = f"{self.last_change:%Y-%m-%d %H:%M:%S}" if self.last_change else None
        return {name.replace("_", " "): value for name, value in row.items()}


def load_study(url: str, name: str) -> optuna.Study:
    """The study `name` in the storage at `url`. Raises StudyError, naming what there is, where it is missing."""
    storage = open_storage(url)
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        known = ", ".join(sorted(optuna.get_all_study_names(storage))) or "none"
        raise StudyError(f"no study {name!r} in {shown(url)}; there are: {known}") from None


def summarise(study: optuna.Study) -> StudySummary:
    """Count the lineages of `study` by the state of their last trial."""
    last = lineages(study.get_trials(deepcopy=False))
    counts = {state: sum(trial.state is state for trial in last.values()) for state in TrialState}
    best = best_lineage(study, last)
    changes = [trial.datetime_complete or trial.datetime_start for trial in last.values()]
    return StudySummary(
        name=study.study_name,
        complete=counts[TrialState.COMPLETE],
        pruned=counts[TrialState.PRUNED],
        failed=counts[TrialState.FAIL],
        running=counts[TrialState.RUNNING],
        waiting=counts[TrialState.WAITING],
        best_trial=best,
        best_value=last[best].values[0] if best is not None else None,
        best_params=dict(last[best].params) if best is not None else {},
        trial_hours=sum(float(trial.user_attrs.get(SECONDS, 0.0)) for trial in last.values()) / 3600,
        last_change=max((change for change in changes if change is not None), default=None),
    )


def summaries(url: str, name: str | None = None) -> list[StudySummary]:
    """Every study in the storage at `url`, or the one called `name`."""
    names = [name] if name is not None else sorted(optuna.get_all_study_names(open_storage(url)))
    return [summarise(load_study(url, entry)) for entry in names]


def trial_rows(url: str, name: str) -> list[dict[str, Any]]:
    """One row a trial (a lineage): number, state, value, epochs, seconds, reason of a failure, parameters."""
    last = lineages(load_study(url, name).get_trials(deepcopy=False))
    paths = sorted({path for trial in last.values() for path in trial.params})
    return [
        {
            "trial": lineage,
            "state": trial.state.name,
            "value": _value(trial),
            "epochs": trial.user_attrs.get(STEP, trial.last_step),
            "seconds": trial.user_attrs.get(SECONDS),
            "reason": trial.user_attrs.get(REASON),
        }
        | {path: trial.params.get(path) for path in paths}
        for lineage, trial in sorted(last.items())
    ]


def best_trial(url: str, name: str) -> dict[str, Any]:
    """Number, value and parameters of the best complete trial. Raises StudyError where none is complete."""
    study = load_study(url, name)
    last = lineages(study.get_trials(deepcopy=False))
    best = best_lineage(study, last)
    if best is None:
        raise StudyError(f"no trial of {name} is complete yet; `kt-ray status {name}` shows how far it is")
    return {"trial": best, "value": last[best].values[0], "params": dict(last[best].params)}


def best_lineage(study: optuna.Study, last: dict[int, FrozenTrial]) -> int | None:
    """The complete lineage with the best first objective, if there is one."""
    sign = 1 if study.directions[0] is StudyDirection.MAXIMIZE else -1
    complete = [number for number, trial in last.items() if trial.state is TrialState.COMPLETE]
    return max(complete, key=lambda number: sign * last[number].values[0], default=None)


def _value(trial: FrozenTrial) -> float | None:
    if trial.values:
        return float(trial.values[0])
    return trial.intermediate_values[trial.last_step] if trial.last_step is not None else None
