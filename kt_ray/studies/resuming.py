"""Going on with a study: what a person asks for beyond what it was last run with, and what to type for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from kt_ray.config import DistillConfig, SearchConfig, StudyConfig
from kt_ray.errors import ConfigError
from kt_ray.studies.workspace import Workspace

Search = TypeVar("Search", bound=SearchConfig)


@dataclass(frozen=True)
class Extension:
    """More for a study: `trials` in all or `add` more, `hours` of this run, `device_hours` in all; None changes none.

    `start_from` names studies or champions whose points are tried next. Raises ConfigError where both `trials` and
    `add` are given.
    """

    trials: int | None = None
    add: int | None = None
    hours: float | None = None
    device_hours: float | None = None
    start_from: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.trials is not None and self.add is not None:
            raise ConfigError("--trials and --add exclude each other; give one")

    def extended(self, search: Search) -> Search:
        """`search` with the budgets given here in place of its own."""
        budgets = {"hours": self.hours, "device_hours": self.device_hours}
        given = {name: value for name, value in budgets.items() if value is not None}
        trials = self.trials or search.trials + (self.add or 0)
        return search.model_copy(update={"trials": trials, **given})


def resume_command(config: StudyConfig | DistillConfig, workspace: Workspace) -> str:
    """What to type to go on with the study."""
    return f"kt-ray resume {config.name}{workspace.option}"
