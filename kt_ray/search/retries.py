"""Retries of trials, the attributes of a study and its trials, and the champion of a study.

A trial that an infrastructure failure or a dead driver interrupts is marked as failed, and a WAITING trial with its
parameters is added as its retry. A trial and its retries are one *lineage*, named by the number of the first trial
(Optuna's `failed_trial` and `retry_history` attributes). A search counts lineages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial, TrialState

from kt_ray._compat.optuna import EARLIER_TRIES, FIRST_TRY
from kt_ray.config.study import Constraint
from kt_ray.errors import StudyError
from kt_ray.search.integrity import search_of
from kt_ray.search.samplers import ORDINAL

# User attributes of the study.
IDENTITY = "identity"  # tells it from another study that had its name before, or has it elsewhere

# User attributes of a trial.
GRID = "grid"  # which point of the grid it is
METRICS = "metrics"  # the last report
STEP = "step"  # the epoch of the last report
TRAINED = "trained"  # whether that is its last one: no pruner stops it any more
SECONDS = "seconds"  # time its workers spent on it
REASON = "reason"  # why it failed
DEATHS = "deaths"  # how often its worker or node was lost

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def lineage_of(trial: FrozenTrial) -> int:
    """Return the number of the first trial in the lineage of `trial`. Raises StudyError if the storage holds none."""
    first = trial.system_attrs.get(FIRST_TRY, trial.number)
    if not isinstance(first, int) or not 0 <= first <= trial.number:  # it names a directory of checkpoints
        raise StudyError(f"trial {trial.number} says that it tries trial {str(first)[:40]!r} again; expected a number")
    return first


def retries_of(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the trials that were retried before `trial`."""
    return list(trial.system_attrs.get(EARLIER_TRIES, []))


def lineages(trials: Iterable[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Return the last trial of each lineage, by lineage; without trials that ended before their values were drawn."""
    last: dict[int, FrozenTrial] = {}
    for trial in trials:
        if trial.state.is_finished() and ORDINAL not in trial.user_attrs and not trial.values:
            continue
        last[lineage_of(trial)] = trial
    return last


def violated_constraints(trial: FrozenTrial, constraints: Iterable[Constraint]) -> list[Constraint]:
    """Return the constraints that a finished trial violates."""
    metrics = trial.user_attrs.get(METRICS, {})
    return [constraint for constraint in constraints if constraint.excess(metrics) > 0]


def select_champion(study: optuna.Study, trials: Iterable[FrozenTrial] | None = None) -> FrozenTrial | None:
    """Return the champion of a study: the best complete trial by the first objective that violates no constraint.

    With several objectives, the next one decides among trials within `tolerance` of the best, and so on. Of equal
    trials, the earlier wins. None if no trial qualifies.
    """
    search = search_of(study)
    constraints = [Constraint.model_validate(text) for text in search.get("constraints", [])]
    last = lineages(study.get_trials(deepcopy=False) if trials is None else trials)
    left = [trial for _, trial in sorted(last.items()) if trial.state is TrialState.COMPLETE]
    left = [trial for trial in left if not violated_constraints(trial, constraints)]
    for index, direction in enumerate(study.directions):
        sign = 1 if direction is optuna.study.StudyDirection.MAXIMIZE else -1
        slack = search.get("tolerance", 0.0) if index + 1 < len(study.directions) else 0.0
        best = max((sign * trial.values[index] for trial in left), default=math.nan)
        left = [trial for trial in left if sign * trial.values[index] >= best - slack]
    return left[0] if left else None
