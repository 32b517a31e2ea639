"""The study file: dataset, zoo, base trial, search space, search, storage."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from kt_ray._io.urls import has_password, in_memory
from kt_ray.config.base import Frozen, Resources, check_registered
from kt_ray.config.code import CodeFile
from kt_ray.config.durations import Hours
from kt_ray.config.network import PairChoice
from kt_ray.config.trial import METRICS, TrialConfig
from kt_ray.config.zoo import FILE_NAME, FILE_NAME_SAYS, DatasetConfig, ZooConfig

LARGEST = 2.0**53  # of a bound: whole numbers above it are not told apart by a float
STEPS = 1_000_000  # of a stepped range, whose values are counted
PRINTABLE = r"^[^\s\x00-\x1f](?:[^\x00-\x1f]*[^\s\x00-\x1f])?$"  # no blank at either end
MODEL_NAME = r"^[^\s\x00-\x1f/:](?:[^\x00-\x1f/:]*[^\s\x00-\x1f/:])?$"  # MLflow takes neither `/` nor `:`
Choice = None | bool | int | float | str


class Distribution(Frozen):
    """One searched path. Exactly one of `float`, `int`, `categorical` is set; `when` makes it conditional.

    `{float: [1e-4, 1e-2], log: true}`, `{int: [2, 8], step: 2}`, `{categorical: [a, b]}`,
    `{int: [2, 8], when: {translator.family: mixer}}` (a value or a list of values).
    """

    float_range: tuple[float, float] | None = Field(None, alias="float")
    int_range: tuple[int, int] | None = Field(None, alias="int")
    categorical: tuple[Choice, ...] | None = None
    log: bool = False
    step: PositiveFloat | None = None
    when: dict[str, Choice | list[Choice]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_well_formed_kind(self) -> Distribution:
        given = {"float": self.float_range, "int": self.int_range, "categorical": self.categorical}
        kinds = [kind for kind, value in given.items() if value is not None]
        if len(kinds) != 1:
            raise ValueError(f"exactly one of float, int, categorical must be set, got {' and '.join(kinds) or 'none'}")
        if self.categorical is not None:
            if not self.categorical:
                raise ValueError("`categorical` must name at least one choice, got an empty list")
            if self.log or self.step is not None:
                raise ValueError("`log` and `step` belong to float and int, not to categorical")
            return self
        low, high = self.float_range or self.int_range or (0, 0)
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(f"bounds must be finite, got low={low}, high={high}")
        if max(abs(low), abs(high)) > LARGEST:
            raise ValueError(f"bounds must be within ±{LARGEST:.0e}, got low={low:g}, high={high:g}")
        if self.step is not None and (high - low) / self.step > STEPS:
            raise ValueError(f"at most {STEPS:,} steps fit between the bounds, got step={self.step:g}; use no `step`")
        if not low <= high:
            raise ValueError(f"`low` must not be above `high`, got low={low}, high={high}")
        if self.log and low <= 0:
            raise ValueError(f"`low` must be above 0 for log, got low={low}")
        if self.log and self.step is not None:
            raise ValueError("`log` and `step` exclude each other")
        return self


class Objective(Frozen):
    """A reported metric that the study optimises."""

    metric: str = "accuracy_mean"
    direction: Literal["maximize", "minimize"] = "maximize"


SAMPLERS = ("tpe", "gp", "cmaes", "nsga2", "nsga3", "qmc", "random", "grid")


class SamplerConfig(Frozen):
    """An Optuna sampler by name, with its options as Optuna names them. `grid` takes every point once.

    TPE is multivariate, grouped, draws 5 trials at random first and takes the best of 8 candidates, unless its options
    say otherwise.
    """

    name: str = Field("tpe", description=f"{', '.join(SAMPLERS)}, or a registered one")
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known_sampler(self) -> SamplerConfig:
        if self.name not in SAMPLERS:
            check_registered("sampler", self.name, self.options)
        return self


class PrunerConfig(Frozen):
    """An Optuna pruner by name, with its options as Optuna names them. `patient` wraps the one in `pruner`.

    Optuna prunes only studies of one objective.
    """

    name: Literal["none", "median", "percentile", "successive_halving", "hyperband", "wilcoxon", "patient"] = "median"
    options: dict[str, Any] = Field(default_factory=dict)
    pruner: PrunerConfig | None = Field(None, description="what `patient` wraps; none: it prunes by patience alone")

    @model_validator(mode="after")
    def _only_patient_wraps(self) -> PrunerConfig:
        if self.pruner is not None and self.name != "patient":
            raise ValueError(f"only `patient` wraps another pruner, got one in {self.name}")
        return self


class TrialResources(Resources):
    """The share of a node that a trial takes."""

    @property
    def devices(self) -> float:
        """GPUs of a trial on GPUs, CPUs of any other: what device-hours count."""
        return self.gpus or self.cpus


CONSTRAINT = re.compile(r"\s*([A-Za-z_]\w*)\s*(<=|>=)\s*([-+0-9.eE]+)\s*")


class Constraint(Frozen):
    """A bound on a reported metric, written `parameters <= 1e6`."""

    metric: str
    sign: Literal["<=", ">="]
    bound: float

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = CONSTRAINT.fullmatch(value)
        try:
            return {"metric": match[1], "sign": match[2], "bound": float(match[3])}  # type: ignore[index]
        except (TypeError, ValueError):
            raise ValueError(f"expected a bound such as `parameters <= 1e6`, got {value!r}") from None

    def excess(self, metrics: Mapping[str, float]) -> float:
        """By how much `metrics` break the bound: above 0 if they do. A metric that is missing breaks it."""
        value = metrics.get(self.metric, math.nan)
        excess = value - self.bound if self.sign == "<=" else self.bound - value
        return math.inf if math.isnan(excess) else excess

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.bound:g}"


class SearchConfig(Frozen):
    """Options of the search, and when it ends."""

    trials: PositiveInt = Field(20, description="trials to finish (complete or pruned)")
    hours: Hours | None = Field(
        None, description="stop asking for trials after so many hours of one run; or `90 min`, `1:30 h`"
    )
    device_hours: Hours | None = Field(
        None, description="stop asking for trials once the study's have used so many GPU-hours (CPU-hours without GPU)"
    )
    seed: int = Field(0, ge=0)
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    objectives: tuple[Objective, ...] = (Objective(),)
    constraints: tuple[Constraint, ...] = Field((), description="trials outside are steered away from, and never best")
    tolerance: float = Field(
        0.0, ge=0, description="of several objectives: so close to the best first one, the next decides the champion"
    )
    points: tuple[dict[str, Choice], ...] = Field((), description="points of the space to try first; may be partial")
    concurrency: PositiveInt | None = Field(None, description="trials at once; as many as fit the cluster if unset")
    resources: TrialResources = TrialResources()
    retries: int = Field(2, ge=0, description="tries again of a trial that died with its node or worker")

    @field_validator("objectives")
    @classmethod
    def _some_objective(cls, value: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if not value:
            raise ValueError("at least one objective is needed")
        if len({objective.metric for objective in value}) < len(value):
            raise ValueError("each objective needs a metric of its own")
        return value

    @model_validator(mode="after")
    def _sampler_fits(self) -> SearchConfig:
        if len(self.objectives) > 1 and self.sampler.name == "cmaes":
            raise ValueError("cmaes takes one objective; use nsga2, tpe or gp for several")
        if self.constraints and self.sampler.name in SAMPLERS and self.sampler.name not in CONSTRAINED:
            raise ValueError(f"{self.sampler.name} knows no constraints; use one of {', '.join(CONSTRAINED)}")
        return self


CONSTRAINED = ("tpe", "gp", "nsga2", "nsga3", "random", "grid")  # the last two sample on regardless


class RayConfig(Frozen):
    """The Ray cluster: one started here for the command, unless `address` names another."""

    address: str | None = Field(None, description='"auto" or host:port; unset: start one here')
    cpus: PositiveInt | None = Field(None, description="CPUs of the one started here; the machine's if unset")
    gpus: int | None = Field(None, ge=0, description="GPUs of the one started here; the machine's if unset")


class StorageConfig(Frozen):
    """The places of zoos, studies and MLflow; the workspace if unset. `KT_RAY_STORAGE_STUDY=…` overrides `study`."""

    zoos: str | None = Field(None, description="directory or pyarrow.fs URI")
    checkpoints: str | None = Field(None, description="directory that every node can write")
    study: str | None = Field(None, description="Optuna storage URL")
    tracking: str | None = Field(None, description="MLflow tracking URI")
    artifacts: str | None = Field(None, description="MLflow artifact root")

    @field_validator("*")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value is not None and has_password(value):
            raise ValueError(
                "a URL here holds no password, for it would reach logs; set PGPASSWORD or PGPASSFILE for PostgreSQL, "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for MLflow"
            )
        return value

    @field_validator("study")
    @classmethod
    def _outlives_the_process(cls, value: str | None) -> str | None:
        if value is not None and "://" not in value:
            raise ValueError(f"expected a URL of an Optuna storage, got {value!r}; a file is sqlite:///{value}")
        if value is not None and in_memory(value):
            raise ValueError(
                f"{value!r} ends with the process, and the study with it; name a file: sqlite:///optuna.db"
            )
        return value


class StudyConfig(Frozen):
    """A study file: base configuration and search space in one."""

    kind: Literal["translation"] = Field("translation", description="need not be given")
    name: str = Field(pattern=FILE_NAME, max_length=100, description=FILE_NAME_SAYS)
    project: str = Field("kt_ray", pattern=PRINTABLE, max_length=250, description="the MLflow experiment")
    model_name: str = Field(
        "kt-translator", pattern=MODEL_NAME, max_length=250, description="the registered model of the champion"
    )
    description: str = ""
    code: tuple[CodeFile, ...] = Field((), description="Python files that register what is used below")
    dataset: DatasetConfig = DatasetConfig()
    pair: PairChoice = PairChoice(name="basic_to_simple")
    zoo: ZooConfig = ZooConfig()
    trial: TrialConfig = TrialConfig()
    space: dict[str, Distribution] = Field(default_factory=dict, description="dotted paths of `trial`")
    search: SearchConfig = SearchConfig()
    ray: RayConfig = RayConfig()
    storage: StorageConfig = StorageConfig()

    @property
    def metrics(self) -> tuple[str, ...]:
        return METRICS

    @model_validator(mode="before")
    @classmethod
    def _network_of_the_zoo(cls, content: Any) -> Any:
        """`network` beside `pair` is that of the zoo."""
        if not isinstance(content, dict) or "network" not in content:
            return content
        zoo = content.get("zoo", {})
        if not isinstance(zoo, dict) or "network" in zoo:
            raise ValueError("network: is given as zoo.network too; give one of them")
        rest = {key: value for key, value in content.items() if key != "network"}
        return rest | {"zoo": zoo | {"network": content["network"]}}

    @field_validator("dataset")
    @classmethod
    def _some_selection_images(cls, value: DatasetConfig) -> DatasetConfig:
        if not value.selection_images:
            raise ValueError("selection_images must be above 0: trials are compared by their accuracy on these images")
        return value
