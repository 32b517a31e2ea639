"""Private parts of Optuna that a search needs."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import optuna
from optuna.pruners import HyperbandPruner
from optuna.samplers import CmaEsSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from kt_ray.errors import StudyError

# System attributes that Optuna's retry callback writes. Its public readers warn that they are experimental at every
# call, and nothing public enqueues a retry without a heartbeat.
# Wish: `Study.retry_trial(trial)`, and readers that do not warn.
FIRST_TRY = "failed_trial"
EARLIER_TRIES = "retry_history"

# System attribute of a trial from `Study.enqueue_trial`. Wish: `FrozenTrial.enqueued_params`.
ENQUEUED = "fixed_params"

# System attributes with which successive halving records a trial's value at each rung, from 0.
# Wish: pruners that record nothing while they decide, so that they can decide again after a crash.
RUNG = "completed_rung_"


def with_cache(storage: RDBStorage) -> BaseStorage:
    """Return `storage` behind the cache that keeps asking fast with thousands of trials.

    `create_study` adds this cache to a bare RDBStorage, but not to a storage that wraps one.
    Wish: a public `CachedStorage`.
    """
    return optuna.storages.get_storage(storage)


def without_last_rungs(trial: FrozenTrial) -> dict[str, Any]:
    """Return the system attributes of `trial` without the rungs that successive halving recorded at its last report.

    It records a rung while it decides, and decides once at each rung: to decide again, it must not find them.
    """
    system = dict(trial.system_attrs)
    values = trial.intermediate_values
    last = values.get(max(values, default=0))
    rung = sum(name.startswith(RUNG) for name in system)
    while rung and system[f"{RUNG}{rung - 1}"] == last:
        rung -= 1
        del system[f"{RUNG}{rung}"]
    return system


class StudyWithoutFailures:
    """A study as pruners see it, without its failed trials: neither lost tries nor errors compete with anything.

    Pruners take any object with these attributes, which are those that Optuna's own view of a study has
    (`HyperbandPruner._create_bracket_study`). Wish: a public view of a study with a filter of trials.
    """

    def __init__(self, study: Study) -> None:
        self.study_name = study.study_name
        self.direction = study.direction
        self.directions = study.directions
        self.pruner = study.pruner
        self.sampler = study.sampler
        self._study = study
        self._storage = study._storage
        self._study_id = study._study_id

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        """Return complete, pruned, running and waiting trials."""
        trials = self._study.get_trials(deepcopy=deepcopy, states=states)
        return [trial for trial in trials if trial.state is not TrialState.FAIL]

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.get_trials()

    @property
    def best_trial(self) -> FrozenTrial:
        return self._study.best_trial


class HyperbandByPlace(HyperbandPruner):
    """Hyperband that picks a trial's bracket by `place(trial)` instead of the trial's number.

    The sampler asks for the bracket too, so overriding `prune` is not enough. Wish: a public `bracket_of(trial)`.
    """

    def place(self, trial: FrozenTrial) -> int:
        """Return the number that decides the bracket of `trial`."""
        return trial.number

    def _get_bracket_id(self, study: Study, trial: FrozenTrial) -> int:
        if trial.state is TrialState.FAIL:
            return -1
        placed = copy.copy(trial)
        placed.number = self.place(trial)
        return super()._get_bracket_id(study, placed)


# The classes in a pickled optimiser of CMA-ES: the package's own and NumPy's arrays (under NumPy 1's names too).
CMAES_CLASSES = {
    ("cmaes._cma", "CMA"),
    ("cmaes._cmawm", "CMAwM"),
    ("cmaes._sepcma", "SepCMA"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
}


class SafeCmaEsSampler(CmaEsSampler):  # type: ignore[misc, unused-ignore]
    """CMA-ES that unpickles nothing but optimisers. Raises StudyError if the storage holds any other pickle.

    Optuna keeps the state of CMA-ES as a pickle in the study's storage, which may be another person's.
    Wish: a state without pickle.
    """

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        """Return the optimiser of the last trial that has one, as Optuna's own method finds it."""
        for trial in reversed(completed_trials):
            parts = {
                key: value for key, value in trial.system_attrs.items() if key.startswith(self._attr_key_optimizer)
            }
            if not parts:
                continue
            try:
                return _Unpickler(io.BytesIO(bytes.fromhex(self._concat_optimizer_attrs(parts)))).load()
            except Exception as error:  # damaged bytes raise anything
                raise StudyError(
                    f"trial {trial.number} holds a state of CMA-ES that cannot be read safely ({error}); search with "
                    "another sampler, or under another name"
                ) from None
        return None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return a class that `CMAES_CLASSES` names; refuse any other."""
        if (module, name) not in CMAES_CLASSES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)
