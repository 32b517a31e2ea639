"""Everything that can be known of a study file before it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from kt_ray.config import (
    DistillConfig,
    Distribution,
    MemberCounts,
    Source,
    StudyConfig,
    read_source,
    validate,
    validate_source,
)
from kt_ray.config.kinds import is_distillation, only_study
from kt_ray.errors import ConfigError

PROBE_MEMBERS = MemberCounts(train=4, selection=2, test=1)


@dataclass(frozen=True)
class Validation:
    """A file without fault: its space, what its cluster bears at once, and what one batch of its base trial gave.

    `makes` says what a trial trains, of `parameters` parameters; `trials` is 0 where nothing is searched. `concurrency`
    and `zoo_actors` are None where no cluster was asked, or nothing of it is wanted.
    """

    file: str
    name: str
    makes: Literal["translator", "student"]
    size: str
    trials: int
    concurrency: int | None
    zoo_actors: int | None
    parameters: int
    loss: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For a person to read."""
        wanted = {"zoo actors": self.zoo_actors, "trials at once": self.concurrency}
        fit = ", ".join(f"{count} {what}" for what, count in wanted.items() if count is not None)
        return [
            f"{self.file}: valid",
            f"space: {self.size}; {self.trials} trials asked for" if self.trials else "no search",
            *([f"resources: {fit}"] if fit else []),
            f"one batch of the base trial: loss {self.loss:.4g}, {self.makes} of {self.parameters:,} parameters, "
            f"{self.seconds:.2f} s",
        ]


def read_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """The study file at `path`, its space checked against its base trial. Raises ConfigError with all faults."""
    only_study(path)
    source = read_source(path, overrides)
    try:
        config = validate_source(StudyConfig, source)
    except ConfigError as error:
        raise ConfigError(error.problems + source.error(_space_problems(source)).problems) from None
    faults = search_problems(config)
    if faults:
        raise source.error(faults)
    return config


def _space_problems(source: Source) -> list[str]:
    """What is wrong with the space of a file that has other faults; nothing where the space cannot be read alone."""
    from kt_ray.search.space_problems import problems

    alone: dict[str, Any] = {name: source.content[name] for name in ("trial", "space") if name in source.content}
    try:
        config = validate(StudyConfig, {"name": "alone"} | alone)
    except ConfigError:
        return []
    return problems(config.space, config.trial)


def read_file(path: Path) -> StudyConfig | DistillConfig:
    """The study or distillation file at `path`. Raises ConfigError with all faults."""
    if is_distillation(path):
        from kt_ray.studies.distilling import read_distillation

        return read_distillation(path)
    return read_study(path)


def search_problems(config: StudyConfig | DistillConfig) -> list[str]:
    """What is wrong with the space, the points to try first, sampler and pruner of a configuration whose every value
    is valid by itself."""
    from kt_ray.search.samplers import build_pruner, build_sampler
    from kt_ray.search.space import grid_problems
    from kt_ray.search.space_problems import point_problems, problems

    search = config.search
    faults = problems(config.space, config.trial) + point_problems(search.points, config.space)
    if search.sampler.name == "grid":
        faults += grid_problems(config.space)
    for build in (lambda: build_sampler(search.sampler, seed=0), lambda: build_pruner(search.pruner)):
        try:
            build()
        except ConfigError as error:
            faults += error.problems
    return faults


def validate_file(path: Path, overrides: Sequence[str] = (), *, here: bool = True) -> Validation:
    """Check the study or distillation file at `path`; see `validate_study` and `distilling.validate_distillation`."""
    if is_distillation(path):
        from kt_ray.studies.distilling import validate_distillation

        return validate_distillation(path, overrides, here=here)
    return validate_study(path, overrides, here=here)


def validate_study(path: Path, overrides: Sequence[str] = (), *, here: bool = True) -> Validation:
    """Check the study file at `path` and train one batch of its base trial; `here`, fit it to its Ray cluster too.

    Raises ConfigError with every fault of the file, ResourceError where no node can hold a trial or zoo actor.
    """
    from kt_ray.data import load_dataset
    from kt_ray.jobs.connection import connected
    from kt_ray.networks import Architecture
    from kt_ray.networks.cost import parameter_count
    from kt_ray.search.space import size
    from kt_ray.translation.training import TranslatorTraining
    from kt_ray.zoo.untrained import untrained_zoo

    config = read_study(path, overrides)
    actors = concurrency = None
    if here:
        with connected(config.ray):
            actors, concurrency = fitting_counts(config)
    dataset = load_dataset(config.dataset)
    architecture = Architecture(config.pair, config.zoo.network, dataset.image_shape, dataset.classes)
    one_batch = config.trial.training.model_copy(update={"epochs": 1, "steps_per_epoch": 1})
    trial = config.trial.model_copy(update={"training": one_batch})
    training = TranslatorTraining(trial, untrained_zoo(architecture, PROBE_MEMBERS), dataset)
    start = time.perf_counter()
    metrics = training.run_epoch()
    return Validation(
        file=str(path),
        name=config.name,
        makes="translator",
        size=size(config.space),
        trials=config.search.trials,
        concurrency=concurrency,
        zoo_actors=actors,
        parameters=parameter_count(training.translator),
        loss=metrics["loss"],
        seconds=time.perf_counter() - start,
    )


def fitting_counts(config: StudyConfig) -> tuple[int, int]:
    """How many zoo actors and trials at once the connected cluster bears, within what the file asks for."""
    from kt_ray.jobs.connection import fitting

    actors, trial = config.zoo.actors, config.search.resources
    fit_actors = fitting({"CPU": actors.cpus, "GPU": actors.gpus, **actors.resources}, actors.label_selector)
    fit_trials = fitting({"CPU": trial.cpus, "GPU": trial.gpus, **trial.resources}, trial.label_selector)
    return min(actors.count or fit_actors, fit_actors), min(config.search.concurrency or fit_trials, fit_trials)


def space_rows(config: StudyConfig | DistillConfig) -> list[dict[str, Any]]:
    """One row a searched path: what is drawn, from where, under which condition."""
    return [{"path": path, **_described(distribution)} for path, distribution in config.space.items()]


def space_size(config: StudyConfig | DistillConfig) -> str:
    """How many points the space has, in words."""
    from kt_ray.search.space import size

    return size(config.space)


def _described(distribution: Distribution) -> dict[str, Any]:
    if distribution.categorical is not None:
        kind, values = "categorical", ", ".join(str(choice) for choice in distribution.categorical)
    else:
        kind = "float" if distribution.float_range is not None else "int"
        low, high = distribution.float_range or distribution.int_range or (0, 0)
        values = f"{low:g} … {high:g}" + (f" step {distribution.step:g}" if distribution.step else "")
    when = ", ".join(f"{path} = {value}" for path, value in distribution.when.items())
    return {"kind": kind + (" log" if distribution.log else ""), "values": values, "when": when}
