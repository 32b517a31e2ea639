"""Hashes of what a study holds, kept in its own attributes: no flipped bit of a database becomes another number.

SQLite checks its pages' structure, not the values in them. Trials that other programs added carry no hash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from kt_ray._io.checksum import json_digest
from kt_ray.errors import StudyError

SEARCH = "search"  # attribute of the study: what reading it needs to know of its configuration
SHA256 = "sha256"  # attribute of a trial that is complete or pruned, entry of `search`: the hash of everything else
RESTORE = "restore a backup of the study storage, or move it away and start anew"


def trial_digest(trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> str:
    """Return the hash of what `trial` holds once it ends in `state` with `values`."""
    attributes = {name: value for name, value in trial.user_attrs.items() if name != SHA256}
    steps = sorted(trial.intermediate_values.items())
    return json_digest([trial.number, state.name, trial.params, values, steps, attributes])


def check_trials(trials: Sequence[FrozenTrial]) -> None:
    """Raise StudyError if a finished trial does not have the hash that it carries, or a trial is missing."""
    for number, trial in enumerate(trials):
        if trial.number != number or not _holds(trial):
            raise StudyError(f"trial {number} is damaged: its values are not those that were written; {RESTORE}")


def _holds(trial: FrozenTrial) -> bool:
    """Return whether a trial has the hash that it carries, if it has ended and carries one."""
    values, known = trial.values, trial.user_attrs.get(SHA256)
    if known is None or trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return True
    if trial.state is TrialState.PRUNED:  # Optuna gives it its last report as value
        if values is not None and values != [trial.intermediate_values.get(trial.last_step or 0)]:
            return False
        values = None
    return bool(known == trial_digest(trial, trial.state, values))


def search_of(study: optuna.Study) -> Mapping[str, Any]:
    """Return what a study holds of its configuration; nothing if another program made it.

    Raises StudyError if it is not what was written.
    """
    content = dict(study.user_attrs.get(SEARCH, {}))
    known = content.pop(SHA256, None)
    if known != json_digest(content) and (known is not None or "directions" in content):  # older studies have neither
        raise StudyError(f"the study {study.study_name} is damaged: it is not searched as was written; {RESTORE}")
    directions = [direction.name.lower() for direction in study.directions]
    if content.get("directions", directions) != directions:
        raise StudyError(f"the study {study.study_name} is damaged: its directions are {directions}; {RESTORE}")
    return content
