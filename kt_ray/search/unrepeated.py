"""A sampler that asks for no point of a finite space twice: a trial's seed is fixed, so it would only be paid again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from kt_ray.search.space import Space, to_distribution

TRIES = 3  # draws of the sampler, then as many random ones, of which the last is taken as it is


class Unrepeated(BaseSampler):
    """Draw whole points of `space` with `sampler`, again while they were tried, at last at random with `seed`."""

    def __init__(self, sampler: BaseSampler, space: Space, seed: int) -> None:
        self.sampler, self.space = sampler, space
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return every path: points are drawn whole."""
        return {path: to_distribution(distribution) for path, distribution in self.space.distributions.items()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a point that no trial has, failed ones apart; a repeated one if none was drawn."""
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        tried = [other.params for other in others if other.state is not TrialState.FAIL]
        point: dict[str, Any] = {}
        for sampler in [self.sampler] * TRIES + [self._random] * TRIES:
            relative = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
            point = self.space(_Draw(sampler, study, trial, relative))
            if point not in tried:
                break
        return point

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a value of one path."""
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Tell the sampler of the end of a trial."""
        self.sampler.after_trial(study, trial, state, values)


@dataclass(frozen=True)
class _Draw:
    """Stands for a trial while a point is drawn: `relative` values where there are any, else independent ones."""

    sampler: BaseSampler
    study: Study
    trial: FrozenTrial
    relative: Mapping[str, Any]

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        return float(self._value(name, FloatDistribution(low, high, log=log, step=step)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        return int(self._value(name, IntDistribution(low, high, log=log, step=step)))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._value(name, CategoricalDistribution(choices))

    def _value(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self.relative:
            return self.relative[name]
        return self.sampler.sample_independent(self.study, self.trial, name, distribution)
