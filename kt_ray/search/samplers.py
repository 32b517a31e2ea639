"""Optuna's samplers and pruners, built from the names and options of a study file."""

from __future__ import annotations

import hashlib
import inspect
import types
import warnings
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import optuna
from optuna import pruners, samplers
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial
from pydantic import TypeAdapter, ValidationError

from kt_ray._compat.optuna import HyperbandByPlace, SafeCmaEsSampler, StudyWithoutFailures
from kt_ray.config import PrunerConfig, SamplerConfig
from kt_ray.errors import ConfigError
from kt_ray.registry import register

ORDINAL = "ordinal"  # user attribute of a trial: how many lineages were drawn before its own; set once it is drawn

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
# TPE learns of values together, in each part of a conditional space, and explores more: benchmarks/search_quality.py.
TPE_DEFAULTS = {"multivariate": True, "n_startup_trials": 5, "n_ei_candidates": 8}


def build_sampler(config: SamplerConfig, seed: int, ordinal: int = 0) -> BaseSampler:
    """Return the sampler that draws lineage `ordinal` of a study, seeded by both.

    A new one for each trial: what it knows is in the study, so a resumed search draws what an uninterrupted one would,
    and no generator's state has to outlive its driver. (Only Optuna's CMA-ES, which adds the trial's number to its
    seed, continues differently.) `register.sampler` decorates a function of its options and the seed to an Optuna
    sampler. Raises ConfigError for an option that the sampler does not have.
    """
    if "seed" in config.options:
        raise ConfigError("search.sampler.options.seed: set search.seed, which seeds every sampler")
    own = trial_seed(seed, ordinal)
    if config.name not in SAMPLERS:
        made = register.sampler.make(config.name, config.options, own)
        if not isinstance(made, BaseSampler):
            raise ConfigError(
                f"search.sampler: {config.name} gives a {type(made).__name__}, expected Optuna's BaseSampler"
            )
        return made
    options = {**config.options, "seed": own}
    if config.name == "tpe":
        jointly = options.get("multivariate") is not False  # which Optuna's `group` needs
        options = {**TPE_DEFAULTS, "group": jointly, **options}
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
    """Return the seed that draws lineage `ordinal` of a study."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{ordinal}".encode()).digest()[:4], "big")


class LineagePruner(BasePruner):
    """Let `pruner` compare a trial with lineages instead of trials, so that a retried trial competes once."""

    def __init__(self, pruner: BasePruner) -> None:
        self.pruner = pruner

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return bool(self.pruner.prune(StudyWithoutFailures(study), trial))  # type: ignore[arg-type]


class LineageHyperband(HyperbandByPlace):
    """Hyperband whose brackets follow the lineage's place in the study, which a retry keeps."""

    def place(self, trial: FrozenTrial) -> int:
        return int(trial.user_attrs.get(ORDINAL, trial.number))


PRUNERS: dict[str, type[BasePruner]] = {
    "none": pruners.NopPruner,
    "median": pruners.MedianPruner,
    "percentile": pruners.PercentilePruner,
    "successive_halving": pruners.SuccessiveHalvingPruner,
    "hyperband": LineageHyperband,
    "wilcoxon": pruners.WilcoxonPruner,
    "patient": pruners.PatientPruner,
}
COMPARING = ("median", "percentile", "successive_halving", "wilcoxon")  # they compare a trial with others


def build_pruner(config: PrunerConfig) -> BasePruner:
    """Return the pruner that `config` names. Raises ConfigError for an option that it does not have."""
    options = dict(config.options)
    if config.name == "patient":
        options["wrapped_pruner"] = build_pruner(config.pruner) if config.pruner else None
    pruner: BasePruner = _built(PRUNERS[config.name], "search.pruner", config.name, options)
    return LineagePruner(pruner) if config.name in COMPARING else pruner


def _built(kind: Callable[..., Any], where: str, name: str, options: dict[str, Any]) -> Any:
    _check_types(kind, f"{where}.options", options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return kind(**options)
    except (TypeError, ValueError, OverflowError) as error:
        given = {key: value for key, value in options.items() if isinstance(value, (int, float, str, bool, list))}
        raise ConfigError(f"{where}: {name} with {given}: {error}") from None


def _check_types(kind: Callable[..., Any], where: str, options: dict[str, Any]) -> None:
    """Raise ConfigError with every option whose value is not of the type that Optuna's signature names.

    Optuna itself compares `"3"` with numbers only when the search is under way. Types other than plain ones are not
    checked.
    """
    init = inspect.unwrap(kind.__init__)
    faults = []
    for name, value in options.items():
        annotation = init.__annotations__.get(name)
        hint = None if annotation is None else _plain_type(annotation, init.__globals__)
        if hint is None:
            continue
        try:
            TypeAdapter(hint).validate_python(value, strict=True)
        except ValidationError:
            faults.append(f"{where}.{name}: expected {annotation}, got {value!r}")
    if faults:
        raise ConfigError(faults)


def _plain_type(annotation: Any, names: dict[str, Any]) -> Any:
    """Return the type that an annotation stands for, if it is made of truth values, numbers, text and None alone."""
    holder = types.SimpleNamespace(__annotations__={"value": annotation})
    try:
        hint = get_type_hints(holder, globalns=names)["value"]
    except (NameError, TypeError, SyntaxError, KeyError):  # a name that Optuna imports for type checkers alone
        return None
    return hint if {*(get_args(hint) or (hint,))} <= {bool, int, float, str, type(None)} else None
