"""Everything that can be known of a study file before it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kt_ray.data import load_dataset
from kt_ray.jobs.connection import connected
from kt_ray.search.space import size
from kt_ray.studies.permission import Permission
from kt_ray.studies.runner import study_task
from kt_ray.studies.study_file import read_study_file
from kt_ray.studies.workspace import Workspace


@dataclass(frozen=True)
class Validation:
    """A file without fault: its space, what its cluster runs at once, and the results of one batch of its base trial.

    `makes` says what a trial trains, of `parameters` parameters; `trials` is 0 where nothing is searched. `concurrency`
    and `zoo_actors` are None if no cluster was asked, or nothing of it is wanted.
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


def validate_file(
    path: Path, overrides: Sequence[str] = (), *, here: bool = True, permission: Permission | None = None
) -> Validation:
    """Check the study file at `path` and train one batch of its base trial; `here`, fit it to its Ray cluster too.

    Raises ConfigError with every fault of the file or if its code may not run, CheckpointError for a teacher's,
    ResourceError where no node can hold a trial or zoo actor.
    """
    config = read_study_file(path, overrides, permission=permission)
    task = study_task(config, Workspace.at(None, config.storage))
    counts: dict[str, int] = {}
    if here and task.demands:
        with connected(config.ray):
            counts = {name: demand.fitting() for name, demand in task.demands.items()}
    dataset = load_dataset(config.dataset)
    start = time.perf_counter()
    parameters, loss = task.try_batch(dataset)
    return Validation(
        file=str(path),
        name=config.name,
        makes=task.makes,
        size=size(config.space, config.trial),
        trials=config.search.trials if task.demands else 0,
        concurrency=counts.get("trials"),
        zoo_actors=counts.get("zoo actors"),
        parameters=parameters,
        loss=loss,
        seconds=time.perf_counter() - start,
    )
