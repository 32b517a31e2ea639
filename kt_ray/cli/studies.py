"""`kt-ray run|distill|search|resume` and what reads a study: `status`, `trials`, `best`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from kt_ray.cli.options import AllowCode, AllowInclude, File, Format, Set, Study, WorkspaceRoot
from kt_ray.cli.output import say, show, show_json, show_table

app = typer.Typer()


AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Go on although zoo, dataset, code or base trial differ from before.")
]

AcceptWeak = Annotated[
    bool,
    typer.Option("--accept-weak", help="Make the best translator champion even if a block without cost is better."),
]

From = Annotated[
    list[str] | None,
    typer.Option(
        "--from",
        metavar="STUDY|MODEL",
        help="Try first what another study found best, or a translator (models:/NAME@champion, a file, "
        "pretrained:basic_to_simple), as far as its parameters lie in this space; repeatable.",
    ),
]


@app.command()
def run(
    file: File,
    overrides: Set = None,
    start_from: From = None,
    workspace: WorkspaceRoot = None,
    accept_changes: AcceptChanges = False,
    accept_weak: AcceptWeak = False,
    allow_code: AllowCode = False,
    allow_include: AllowInclude = None,
) -> None:
    """Run a study to its end: build the zoo, search, evaluate the best translator on test images, register it."""
    allowed: dict[str, Any] = {"allow_code": allow_code, "allow_include": allow_include or ()}
    _run(file, overrides, start_from, workspace, accept_changes, accept_weak=accept_weak, **allowed)


@app.command()
def distill(
    file: File,
    overrides: Set = None,
    start_from: From = None,
    workspace: WorkspaceRoot = None,
    accept_changes: AcceptChanges = False,
    allow_code: AllowCode = False,
    allow_include: AllowInclude = None,
) -> None:
    """Train a small network from a teacher, or search how to; register the best student."""
    allowed: dict[str, Any] = {"allow_code": allow_code, "allow_include": allow_include or ()}
    _run(file, overrides, start_from, workspace, accept_changes, kind="distillation", **allowed)


@app.command()
def search(
    file: File,
    overrides: Set = None,
    start_from: From = None,
    workspace: WorkspaceRoot = None,
    accept_changes: AcceptChanges = False,
    allow_code: AllowCode = False,
    allow_include: AllowInclude = None,
) -> None:
    """Search the space of a study file over a zoo that is already built."""
    allowed: dict[str, Any] = {"allow_code": allow_code, "allow_include": allow_include or ()}
    _run(file, overrides, start_from, workspace, accept_changes, kind="translation", search_only=True, **allowed)


def _run(file: str, overrides: Set, start_from: From, workspace: WorkspaceRoot, changes: bool, **options: Any) -> None:
    from kt_ray.studies import study

    study.run(
        file, workspace, overrides=overrides or (), start_from=start_from or (), accept_changes=changes, **options
    )


Trials = Annotated[int | None, typer.Option(min=1, help="Trials the study shall have in all.")]
Add = Annotated[int | None, typer.Option(min=1, help="Trials beyond those it asked for last.")]
GPUHours = Annotated[
    float | None, typer.Option(min=0, help="Stop once the study's trials have used so many GPU-hours (CPU-hours).")
]
Hours = Annotated[float | None, typer.Option(min=0, help="Stop asking for trials after so many hours.")]


@app.command()
def resume(
    study: Study,
    trials: Trials = None,
    add: Add = None,
    hours: Hours = None,
    gpu_hours: GPUHours = None,
    start_from: From = None,
    accept_changes: AcceptChanges = False,
    accept_weak: AcceptWeak = False,
    allow_code: AllowCode = False,
    workspace: WorkspaceRoot = None,
) -> None:
    """Continue a study after an interruption or crash, or give a finished one more trials."""
    from kt_ray.studies import study as studies

    studies.resume(
        study,
        workspace,
        trials=trials,
        add=add,
        hours=hours,
        device_hours=gpu_hours,
        start_from=start_from or (),
        accept_changes=accept_changes,
        allow_code=allow_code,
        accept_weak=accept_weak,
    )


@app.command()
def status(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="One study; all of them if unset.")] = None,
    workspace: WorkspaceRoot = None,
    format_: Format = "table",
) -> None:
    """Show how many trials of each study are done, running and failed, also while one runs."""
    from kt_ray._io.urls import redacted
    from kt_ray.errors import StudyError
    from kt_ray.search.summary import summaries
    from kt_ray.studies.workspace import Workspace

    place = Workspace.existing(workspace)
    found = summaries(place.study_storage, study)
    begun = sorted({path.parts[-3] for path in (place.root / "studies").glob("*/checkpoints/*")})
    if begun and not found:
        raise StudyError(f"{redacted(place.study_storage)} is missing or empty, but trials of {begun[0]} have run")
    show([asdict(entry) for entry in found], [entry.row() for entry in found], format_, "studies")


@app.command()
def trials(
    study: Study,
    every: Annotated[bool, typer.Option("--all", help="Every column, also where they do not fit.")] = False,
    workspace: WorkspaceRoot = None,
    format_: Format = "table",
) -> None:
    """List the trials of a study with their state, value and the parameters that vary most, as far as they fit."""
    from kt_ray._io.tables import fitting, terminal_width
    from kt_ray.search.summary import trial_rows, varied_parameters
    from kt_ray.studies.workspace import Workspace

    rows = trial_rows(Workspace.existing(workspace).study_storage, study)
    width = terminal_width()
    if every or width is None or not rows or format_ == "json":
        show(rows, rows, format_, f"trials of {study}")
        return
    parameters = varied_parameters(rows)
    facts = [name for name in rows[0] if name not in parameters]
    first = [*facts[:3], *(["reason"] if any(row["reason"] for row in rows) else [])]
    names = fitting(rows, [*first, *parameters, *(name for name in facts if name not in first)], width)
    show_table([{name: row[name] for name in names} for row in rows], f"trials of {study}")
    hidden = len(rows[0]) - len(names)
    if hidden:
        say(f"`--all` shows {hidden} more columns")


@app.command()
def best(study: Study, workspace: WorkspaceRoot = None, format_: Format = "table") -> None:
    """Show the best trial of a study and its parameters."""
    from kt_ray._io.text import number
    from kt_ray.search.summary import best_trial
    from kt_ray.studies.workspace import Workspace

    trial = best_trial(Workspace.existing(workspace).study_storage, study)
    if format_ == "json":
        show_json(trial)
        return
    say(f"trial {trial['trial']}: {number(trial['value'])}")
    show_table([{"parameter": path, "value": value} for path, value in trial["params"].items()])
