"""The public functions of `kt_ray` on studies: run, resume, open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kt_ray._io.display import Displayed
from kt_ray.config import parse_overrides, set_path
from kt_ray.search.storage import study_names
from kt_ray.search.summary import (
    StudySummary,
    best_trial,
    export_trials,
    importance_rows,
    pareto_rows,
    summaries,
    trial_rows,
)
from kt_ray.studies.conclusion import Conclusion, read_conclusion
from kt_ray.studies.console import StudyConsole
from kt_ray.studies.extension import Extension, started_from
from kt_ray.studies.permission import Permission
from kt_ray.studies.report import study_report
from kt_ray.studies.runner import run_study, search_study
from kt_ray.studies.spaces import locate
from kt_ray.studies.study_file import Config, Kind, read_study_file, stored_code, stored_config, study_config
from kt_ray.studies.workspace import Workspace

File = str | Path | Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class Study(Displayed):
    """A study in a workspace, as its storages have it now: also while another process runs it.

    Attributes:
        name: Its name.
        workspace: Where it is kept.
    """

    name: str
    workspace: Workspace

    @property
    def config(self) -> Config:
        """The study file that it was last run with, with all defaults."""
        return stored_config(self.name, self.workspace)

    @property
    def summary(self) -> StudySummary | None:
        """Its trials by state, the best one, device-hours; None if nothing was searched yet."""
        url = self.workspace.study_storage
        return summaries(url, self.name)[0] if self.name in study_names(url) else None

    @property
    def conclusion(self) -> Conclusion | None:
        """Its result at its last end; None if it had none."""
        return read_conclusion(self.workspace, self.name)

    def trials(self) -> list[dict[str, Any]]:
        """Return a mapping for each trial: number, state, value, parameters."""
        return trial_rows(self.workspace.study_storage, self.name)

    def best(self) -> dict[str, Any]:
        """Return number, value and parameters of the best trial. Raises StudyError if none is complete."""
        return best_trial(self.workspace.study_storage, self.name)

    def pareto(self) -> list[dict[str, Any]]:
        """Return the trials that no other beats in every objective. Raises StudyError if none is complete."""
        return pareto_rows(self.workspace.study_storage, self.name)

    def importance(self, objective: int = 0) -> list[dict[str, Any]]:
        """Return each parameter's share of an objective's variance. Raises StudyError below two complete trials."""
        return importance_rows(self.workspace.study_storage, self.name, objective)

    def export(self, path: str | Path) -> int:
        """Write the trials to `path`, whose suffix is .csv, .parquet or .json; return how many. Raises StudyError."""
        return export_trials(self.workspace.study_storage, self.name, Path(path))

    def report(self, path: str | Path | None = None) -> Path:
        """Write the study's HTML page to `path`, in the study's directory if None; return its path."""
        conclusion = self.conclusion
        evaluation = conclusion.evaluation.to_dict() if conclusion else None
        return study_report(self.workspace, self.name, evaluation, None if path is None else Path(path))

    def display_title(self) -> str:
        state = "finished" if self.conclusion else "not finished"
        return f"study {self.name} ({self.config.kind}), {state}"

    def display_rows(self) -> list[dict[str, Any]]:
        summary, conclusion = self.summary, self.conclusion
        facts: dict[str, Any] = {"workspace": str(self.workspace.root)}
        if summary is not None:
            facts |= {name: value for name, value in summary.row().items() if name != "name" and value is not None}
        if summary is not None and conclusion is None:
            facts |= summary.best_params
        rows = [{"": name, "value": value} for name, value in facts.items()]
        return rows + (conclusion.display_rows() if conclusion else [])


def run(
    study: File,
    workspace: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    start_from: Sequence[str] = (),
    kind: Kind | None = None,
    search_only: bool = False,
    accept_changes: bool = False,
    accept_weak: bool = False,
    allow_code: bool = False,
    allow_include: Sequence[str | Path] = (),
    progress: bool = True,
) -> Study:
    """Bring a study to its end: what it needs, search, one evaluation on test images, registry. Does what is lacking.

    Args:
        study: A study file, the name of one that is bundled, or its content as a mapping.
        workspace: Directory of the workspace; `KT_RAY_WORKSPACE`, else `./kt-workspace`, if None.
        overrides: Values in place of the file's, such as `search.trials=20`.
        start_from: Studies or models whose parameters are tried first.
        kind: Refuse a file of another kind: `translation` or `distillation`.
        search_only: Only run the trials that are missing, over a zoo that is built.
        accept_changes: Go on although zoo, dataset or base trial are not those of the study's trials.
        accept_weak: Make the model champion though a block that costs nothing is better.
        allow_code: Let the Python files that the study names under `code` run; those files need it once a workspace.
        allow_include: Folders beside the study file's own whose files it may include.
        progress: Whether to print how far it is.

    Returns:
        The study; its `conclusion` is None if the search was stopped.

    Raises:
        ConfigError: If the file has faults, or names code that is not allowed to run.
        ZooError: If `search_only` and the zoo is missing members.
        StudyError: If another process runs the study, or it was begun with something else.

    Example:
        >>> import kt_ray as kt
        >>> brief = {"epochs": 1, "crop": 0}
        >>> study = kt.run({
        ...     "name": "small", "method": {"name": "none"}, "student": {"resnet": {"depth": 8, "width": 4}},
        ...     "training": brief, "dataset": {"name": "mnist5k", "train_images": 256},
        ... }, progress=False)
        >>> study.conclusion.model
        'kt-student'
    """
    permission = Permission.at(workspace, allow_code, allow_include)
    config, place = _opened(study, workspace, overrides, start_from, kind, permission)
    with StudyConsole(quiet=not progress) as console:
        if search_only:
            search_study(config, place, console, accept_changes=accept_changes)
        else:
            run_study(config, place, console, accept_changes=accept_changes, accept_weak=accept_weak)
    return Study(config.name, place)


def resume(
    study: str,
    workspace: str | Path | None = None,
    *,
    trials: int | None = None,
    add: int | None = None,
    hours: float | None = None,
    device_hours: float | None = None,
    start_from: Sequence[str] = (),
    accept_changes: bool = False,
    accept_weak: bool = False,
    allow_code: bool = False,
    progress: bool = True,
) -> Study:
    """Continue a study as it was last run, after any end, or give a finished one more trials.

    Args:
        study: Its name.
        workspace: Directory of the workspace; `KT_RAY_WORKSPACE`, else `./kt-workspace`, if None.
        trials: How many the study shall have in all.
        add: Trials beyond those it asked for last.
        hours: Stop asking for trials after so many hours.
        device_hours: Stop once the study's trials have used so many GPU-hours (CPU-hours without GPU).
        start_from: Studies or models whose parameters are tried next.
        accept_changes: Go on although zoo, dataset or base trial are not those of the study's trials.
        accept_weak: Make the model champion though a block that costs nothing is better.
        allow_code: Let the code that the study was last run with run, if it was never allowed in this workspace.
        progress: Whether to print how far it is.

    Returns:
        The study.

    Raises:
        ConfigError: If both `trials` and `add` are given, or the study's code is not allowed to run.
        StudyError: If there is no such study, or another process runs it.

    Example:
        >>> import kt_ray as kt
        >>> brief, images = {"epochs": 1, "crop": 0}, {"name": "mnist5k", "train_images": 128}
        >>> student = {"resnet": {"depth": 8, "width": 4}}
        >>> study = kt.run({
        ...     "name": "small", "method": {"name": "none"}, "student": student, "training": brief, "dataset": images,
        ... }, progress=False)
        >>> kt.resume("small", progress=False).conclusion == study.conclusion
        True
    """
    extension = Extension(trials, add, hours, device_hours, start_from)
    opened = open_study(study, workspace, allow_code=allow_code)
    config = extension.extended(opened.config, opened.workspace)
    place = Workspace.open(opened.workspace.root, config.storage)
    with StudyConsole(quiet=not progress) as console:
        run_study(config, place, console, accept_changes=accept_changes, accept_weak=accept_weak)
    return Study(study, place)


def open_study(study: str, workspace: str | Path | None = None, *, allow_code: bool = False) -> Study:
    """Open a study that was run, or is being run.

    If it brings code along, that runs first, so that what it registers is known here.

    Args:
        study: Its name.
        workspace: Directory of the workspace; `KT_RAY_WORKSPACE`, else `./kt-workspace`, if None.
        allow_code: Let its code run, if it was never allowed in this workspace.

    Returns:
        The study; printed, it shows its trials by state, the best one, and what it came to.

    Raises:
        ConfigError: If there is no workspace, or its code is not allowed to run.
        StudyError: If it has no such study, or the study's file is damaged.

    Example:
        >>> import kt_ray as kt
        >>> try:
        ...     kt.open_study("unknown")
        ... except kt.KTError as error:
        ...     print(str(error)[:15])
        no workspace at
    """
    place = Workspace.existing(workspace)
    Permission.at(workspace, allow_code).run(stored_code(study, place))
    opened = Study(study, place)
    return Study(study, Workspace.existing(place.root, opened.config.storage))


def _opened(
    study: File,
    workspace: str | Path | None,
    overrides: Sequence[str],
    start_from: Sequence[str],
    kind: Kind | None,
    permission: Permission,
) -> tuple[Config, Workspace]:
    """Return the study that a file and its overrides describe, with the points it starts from, and its workspace."""
    if isinstance(study, Mapping):
        content = {**study}
        for path, value in parse_overrides(overrides).items():
            set_path(content, path, value)
        config = study_config(content, kind=kind, permission=permission)
    else:
        config = read_study_file(locate(str(study)), overrides, kind, permission)
    place = Workspace.open(workspace, config.storage)
    return started_from(config, place, start_from), place
