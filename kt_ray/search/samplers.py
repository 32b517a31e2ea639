"""Optuna's samplers and pruners by the names and options of a study file."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from kt_ray.config import PrunerConfig, SamplerConfig
from kt_ray.errors import ConfigError

SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
}
PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
}


def build_sampler(config: SamplerConfig, seed: int) -> BaseSampler:
    """The sampler that `config` names, seeded. Raises ConfigError for an option it does not have."""
    if "seed" in config.options:
        raise ConfigError("search.sampler.options.seed: set search.seed, which seeds every sampler")
    sampler: BaseSampler = _built(
        SAMPLERS[config.name], "search.sampler", config.name, {**config.options, "seed": seed}
    )
    return sampler


def build_pruner(config: PrunerConfig) -> BasePruner:
    """The pruner that `config` names. Raises ConfigError for an option it does not have."""
    pruner: BasePruner = _built(PRUNERS[config.name], "search.pruner", config.name, config.options)
    return pruner


def trial_seed(seed: int, ordinal: int) -> int:
    """The seed that draws trial `ordinal` of a study: a search resumed draws what one never interrupted would."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{ordinal}".encode()).digest()[:4], "big")


def _built(kind: Callable[..., Any], where: str, name: str, options: dict[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return kind(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {name} with {options}: {error}") from None
