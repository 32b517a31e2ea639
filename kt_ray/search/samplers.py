"""Optuna's samplers and pruners by the names and options of a study file."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna import pruners, samplers
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from kt_ray.config import PrunerConfig, SamplerConfig
from kt_ray.errors import ConfigError
from kt_ray.search.cmaes import SafeCmaEsSampler

ORDINAL = "ordinal"  # user attribute of a trial: how many lineages were drawn before its own; set once it is drawn
RUNG = "completed_rung_"  # system attributes of Optuna's: a trial's value at each rung, from 0

SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": samplers.TPESampler,
    "gp": samplers.GPSampler,
    "cmaes": SafeCmaEsSampler,
    "nsga2": samplers.NSGAIISampler,
    "nsga3": samplers.NSGAIIISampler,
    "qmc": samplers.QMCSampler,
    "random": samplers.RandomSampler,
    "grid": samplers.RandomSampler,  # the study enqueues the points
}


def build_sampler(config: SamplerConfig, seed: int, ordinal: int = 0) -> BaseSampler:
    """The sampler that draws lineage `ordinal` of a study, seeded by both.

    A fresh one a trial: what it knows is in the study, so a search taken up again draws what one never interrupted
    would, and no generator's state has to outlive its driver. (Optuna's CMA-ES adds the trial's number to its seed:
    it alone goes on differently.) Raises ConfigError for an option that the sampler does not have.
    """
    if "seed" in config.options:
        raise ConfigError("search.sampler.options.seed: set search.seed, which seeds every sampler")
    own = trial_seed(seed, ordinal)
    options = {**config.options, "seed": own}
    if config.name == "qmc":  # one sequence for all trials; its place in it is in the study
        options |= {"seed": seed, "independent_sampler": samplers.RandomSampler(seed=own)}
        options = {"warn_independent_sampling": False, **options}
    if config.name in ("cmaes", "gp"):
        options |= {"independent_sampler": samplers.RandomSampler(seed=own)}
    if config.name == "cmaes":
        options = {"warn_independent_sampling": False, **options}
    sampler: BaseSampler = _built(SAMPLERS[config.name], "search.sampler", config.name, options)
    return sampler


def trial_seed(seed: int, ordinal: int) -> int:
    """The seed that draws lineage `ordinal` of a study."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{ordinal}".encode()).digest()[:4], "big")


class _LineageView:
    """A study as pruners see it: without the trials that another of their lineage has taken the place of."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        """Complete, pruned, running and waiting trials; failed ones compete with nothing."""
        trials = self._study.get_trials(deepcopy=deepcopy, states=states)
        return [trial for trial in trials if trial.state is not TrialState.FAIL]

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.get_trials()


class _Lineages:
    """Mixed into a pruner: it judges a trial against lineages, so that one asked again competes once."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return bool(super().prune(_LineageView(study), trial))  # type: ignore[misc]


class LineageHyperband(pruners.HyperbandPruner):
    """Hyperband whose brackets follow the lineage's place in the study, which a trial asked again keeps."""

    def _get_bracket_id(self, study: Study, trial: FrozenTrial) -> int:
        if trial.state is TrialState.FAIL:
            return -1
        place = copy.copy(trial)
        place.number = trial.user_attrs.get(ORDINAL, trial.number)
        return super()._get_bracket_id(study, place)


def _lineages(kind: type[BasePruner]) -> type[BasePruner]:
    return type(kind.__name__, (_Lineages, kind), {})


PRUNERS: dict[str, type[BasePruner]] = {
    "none": pruners.NopPruner,
    "median": _lineages(pruners.MedianPruner),
    "percentile": _lineages(pruners.PercentilePruner),
    "successive_halving": _lineages(pruners.SuccessiveHalvingPruner),
    "hyperband": LineageHyperband,
    "wilcoxon": _lineages(pruners.WilcoxonPruner),
    "patient": pruners.PatientPruner,
}


def build_pruner(config: PrunerConfig) -> BasePruner:
    """The pruner that `config` names. Raises ConfigError for an option it does not have."""
    options = dict(config.options)
    if config.name == "patient":
        options["wrapped_pruner"] = build_pruner(config.pruner) if config.pruner else None
    pruner: BasePruner = _built(PRUNERS[config.name], "search.pruner", config.name, options)
    return pruner


def without_last_rungs(trial: FrozenTrial) -> dict[str, Any]:
    """System attributes of `trial`, without the rungs that successive halving noted at its last report.

    It notes a rung while it decides, and decides once a rung: to decide again, it must not find them.
    """
    system = dict(trial.system_attrs)
    values = trial.intermediate_values
    last = values.get(max(values, default=0))
    rung = sum(name.startswith(RUNG) for name in system)
    while rung and system[f"{RUNG}{rung - 1}"] == last:
        rung -= 1
        del system[f"{RUNG}{rung}"]
    return system


def _built(kind: Callable[..., Any], where: str, name: str, options: dict[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return kind(**options)
    except (TypeError, ValueError) as error:
        given = {key: value for key, value in options.items() if isinstance(value, (int, float, str, bool, list))}
        raise ConfigError(f"{where}: {name} with {given}: {error}") from None
