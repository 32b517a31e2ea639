"""The Optuna study: the only truth about a search. No Ray here. Searches count *lineages* (`kt_ray.search.retries`)."""

from __future__ import annotations

import math
import random
import uuid
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from kt_ray._compat.optuna import EARLIER_TRIES, ENQUEUED, FIRST_TRY, without_last_rungs
from kt_ray._io.checksum import json_digest
from kt_ray.config import DistillConfig, StudyConfig
from kt_ray.errors import StudyError
from kt_ray.search.integrity import SEARCH, SHA256, check_trials, search_of, trial_digest
from kt_ray.search.retries import (
    DEATHS,
    FINISHED,
    GRID,
    IDENTITY,
    METRICS,
    REASON,
    SECONDS,
    STEP,
    TRAINED,
    lineage_of,
    lineages,
    retries_of,
    select_champion,
)
from kt_ray.search.samplers import ORDINAL, build_pruner, build_sampler, trial_seed
from kt_ray.search.space import count, to_optuna
from kt_ray.search.storage import quiet_optuna
from kt_ray.search.unrepeated import Unrepeated


@dataclass
class StudyTrial:
    """A trial that is to run: drawn now, or cut short before and asked again."""

    trial: optuna.trial.Trial
    lineage: int
    ordinal: int
    values: dict[str, Any]
    step: int  # epochs already reported
    deaths: int  # how often its worker or node was lost
    trained: bool = False  # whether it has told its last report

    @property
    def number(self) -> int:
        return self.trial.number


class SearchStudy:
    """An Optuna study opened to search: asks for trials, hears reports, decides on pruning, tells ends."""

    def __init__(self, config: StudyConfig | DistillConfig, storage: optuna.storages.BaseStorage) -> None:
        self.config = config
        self.objectives = config.search.objectives
        directions = [objective.direction for objective in self.objectives]
        with quiet_optuna():
            self.optuna = optuna.create_study(
                study_name=config.name,
                storage=storage,
                directions=directions,
                load_if_exists=True,
                pruner=build_pruner(config.search.pruner),
                sampler=build_sampler(config.search.sampler, config.search.seed),
            )
        have = [direction.name.lower() for direction in self.optuna.directions]
        if have != directions:
            raise StudyError(
                f"study {config.name} has the directions {have}, the study file {directions}; "
                "an objective cannot change: give the study another `name`"
            )
        search_of(self.optuna)
        check_trials(self.trials())
        self._storage = storage
        self._study_id = storage.get_study_id_from_name(config.name)
        self.space = to_optuna(config.space, config.trial)
        self._points = count(config.space, config.trial)
        self._grid = self._grid_points() if config.search.sampler.name == "grid" else None

    @property
    def identity(self) -> str:
        """A name that no other study has, even one called the same."""
        if IDENTITY not in self.optuna.user_attrs:
            self.optuna.set_user_attr(IDENTITY, uuid.uuid4().hex)
        return str(self.optuna.user_attrs[IDENTITY])

    def describe(self) -> None:
        """Store in the study what its readers need to know of the study file."""
        search = self.config.search
        content = {
            "metrics": [objective.metric for objective in self.objectives],
            "constraints": [str(constraint) for constraint in search.constraints],
            "tolerance": search.tolerance,
            "trials": search.trials,
            "devices": search.resources.devices,
            "device": "GPU" if search.resources.gpus else "CPU",
            "directions": [objective.direction for objective in self.objectives],
        }
        content[SHA256] = json_digest(content)
        if self.optuna.user_attrs.get(SEARCH) != content:
            self.optuna.set_user_attr(SEARCH, content)
        if self.optuna.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.optuna.set_metric_names([objective.metric for objective in self.objectives])

    def enqueue(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Try `points` before anything is drawn; those the study has already are left out."""
        for point in points:
            self.optuna.enqueue_trial(dict(point), skip_if_exists=True)

    @property
    def exhausted(self) -> bool:
        """True if a grid has no point left, and no trial waits."""
        if self._grid is None:
            return False
        trials = self.trials()
        taken = {trial.user_attrs.get(GRID) for trial in trials}
        return len(taken - {None}) >= len(self._grid) and not any(trial.state is TrialState.WAITING for trial in trials)

    def _sampler(self, ordinal: int) -> optuna.samplers.BaseSampler:
        """Return the sampler of lineage `ordinal`; TPE alone asks for the best points of a finite space again."""
        search = self.config.search
        sampler = build_sampler(search.sampler, search.seed, ordinal)
        if search.sampler.name != "tpe" or math.isinf(self._points):
            return sampler
        return Unrepeated(sampler, self.space, trial_seed(search.seed, ordinal))

    def _grid_points(self) -> list[dict[str, Any]]:
        """Every point of the space, in an order that the seed decides."""
        points = list(self.space.points())
        random.Random(self.config.search.seed).shuffle(points)
        return points

    def trials(self) -> list[FrozenTrial]:
        """Every trial as the storage has it."""
        return self.optuna.get_trials(deepcopy=False)

    def lineages(self) -> dict[int, FrozenTrial]:
        """The last trial of each lineage."""
        return lineages(self.trials())

    def finished(self) -> int:
        """Return how many lineages are complete or pruned."""
        return sum(trial.state in FINISHED for trial in self.lineages().values())

    def best(self) -> FrozenTrial | None:
        """The champion of the study, if a trial is complete."""
        return select_champion(self.optuna)

    def last_metrics(self, candidate: StudyTrial) -> dict[str, float]:
        """Return the last report of a trial that is tried again: its objective."""
        values = self._frozen(candidate.number).intermediate_values
        return {self.objectives[0].metric: values[max(values)]}

    def recover(self, reason: str) -> list[int]:
        """Mark the trials that a dead driver left RUNNING as failed and retry them; return their lineages."""
        running = [trial for trial in self.trials() if trial.state is TrialState.RUNNING]
        for trial in running:
            self.fail(trial.number, reason, retry=True)
        return [lineage_of(trial) for trial in running]

    def ask(self) -> StudyTrial:
        """The next trial to run: one that waits to be asked again, else one newly drawn."""
        trials = self.trials()
        drawn = len({lineage_of(trial) for trial in trials if ORDINAL in trial.user_attrs})
        waiting = next((trial for trial in trials if trial.state is TrialState.WAITING), None)
        if waiting is None and self._grid is not None:
            taken = {trial.user_attrs.get(GRID) for trial in trials}
            index = next(index for index in range(len(self._grid)) if index not in taken)
            self.optuna.enqueue_trial(self._grid[index], user_attrs={GRID: index})
        if waiting is not None and ORDINAL in waiting.user_attrs:
            # Its values are drawn already: no sampler is to take it for a further one.
            self.optuna.sampler = optuna.samplers.RandomSampler(seed=0)
        else:
            self.optuna.sampler = self._sampler(drawn)
        trial = self.optuna.ask()
        values = self.space(trial)
        if waiting is None:
            trial.set_user_attr(ORDINAL, drawn)
            return StudyTrial(trial, trial.number, drawn, values, step=0, deaths=0)
        frozen = self._frozen(trial.number)
        ordinal = frozen.user_attrs.get(ORDINAL, drawn)
        if ORDINAL not in frozen.user_attrs:
            trial.set_user_attr(ORDINAL, ordinal)
        step = max(frozen.intermediate_values, default=frozen.user_attrs.get(STEP, 0))
        deaths, trained = frozen.user_attrs.get(DEATHS, 0), frozen.user_attrs.get(TRAINED, False)
        return StudyTrial(trial, lineage_of(frozen), ordinal, values, step, deaths, trained)

    def should_prune(self, candidate: StudyTrial) -> bool:
        """Return whether the pruner wants the trial to stop after its reports, of which none was the last.

        Optuna prunes studies of one objective only. Its pruners may take note of what they are asked: ask always.
        """
        return len(self.objectives) == 1 and candidate.trial.should_prune() and not candidate.trained

    def report(self, candidate: StudyTrial, step: int, metrics: Mapping[str, float], *, last: bool = False) -> bool:
        """Record the epoch `step`, the `last` one or not. Returns whether the pruner wants the trial to stop here.

        Raises ValueError if an objective is missing or NaN.
        """
        values = self.values(metrics)
        if last:  # written first: a driver that dies here takes the trial up knowing that it is not to be pruned
            candidate.trial.set_user_attr(TRAINED, True)
        candidate.trained = last
        if len(values) > 1:
            candidate.trial.set_user_attr(STEP, step)
        else:
            candidate.trial.report(values[0], step)
        candidate.step = step
        return self.should_prune(candidate)

    def values(self, metrics: Mapping[str, float]) -> list[float]:
        """The objectives' values. Raises ValueError if one is missing or NaN."""
        values = []
        for objective in self.objectives:
            value = metrics.get(objective.metric)
            if value is None:
                reported = ", ".join(sorted(metrics)) or "nothing"
                raise ValueError(f"objective {objective.metric} is missing; reported: {reported}")
            if math.isnan(value):
                raise ValueError(f"objective {objective.metric} is NaN")
            values.append(float(value))
        return values

    def end(self, candidate: StudyTrial, metrics: Mapping[str, float], seconds: float, *, pruned: bool) -> None:
        """Tell the study how a trial ended that trained to its end or was pruned."""
        candidate.trial.set_user_attr(METRICS, dict(metrics))
        candidate.trial.set_user_attr(SECONDS, seconds)
        for constraint in self.config.search.constraints:
            name, excess = str(constraint), min(constraint.excess(metrics), 1e30)
            candidate.trial.set_user_attr(name, excess)  # optuna-dashboard 0.21 does not show Optuna 5's constraints
            if name not in self._frozen(candidate.number).constraints:
                candidate.trial.set_constraint(name, excess)
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE
        values = None if pruned else self.values(metrics)
        candidate.trial.set_user_attr(SHA256, trial_digest(self._frozen(candidate.number), state, values))
        self.optuna.tell(candidate.trial.number, values, state)

    def fail(self, number: int, reason: str, *, retry: bool, died: bool = False, seconds: float | None = None) -> None:
        """Tell the study that trial `number` failed; with `retry`, ask for its parameters again. `died` counts.

        What takes its place is written first, so that a driver dying here loses nothing. A trial whose values were
        not all drawn yet has done nothing and is not asked again.
        """
        frozen = self._frozen(number)
        if frozen.state.is_finished():
            return
        attributes = dict(frozen.user_attrs)
        if seconds is not None:
            attributes[SECONDS] = seconds
        if died:
            attributes[DEATHS] = attributes.get(DEATHS, 0) + 1
        drawn = ORDINAL in attributes or ENQUEUED in frozen.system_attrs
        if retry and drawn and not any(number in retries_of(trial) for trial in self.trials()):
            self._ask_again(frozen, attributes)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        for name, value in ((SECONDS, seconds), (REASON, reason)):
            if value is not None:
                self._storage.set_trial_user_attr(trial_id, name, value)
        self.optuna.tell(number, state=TrialState.FAIL)

    def _ask_again(self, trial: FrozenTrial, attributes: dict[str, Any]) -> None:
        """A WAITING trial with everything that `trial` had, its intermediate values too."""
        system = without_last_rungs(trial)
        system[FIRST_TRY] = lineage_of(trial)
        system[EARLIER_TRIES] = [*retries_of(trial), trial.number]
        self.optuna.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=attributes,
                system_attrs=system,
                intermediate_values=trial.intermediate_values,
            )
        )

    def _frozen(self, number: int) -> FrozenTrial:
        return self.trials()[number]
