"""`kt-ray pareto|importance|export|report`: what a study's trials say together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kt_ray.cli.options import Format, Study, WorkspaceRoot
from kt_ray.cli.output import say, show

app = typer.Typer()


@app.command()
def pareto(study: Study, workspace: WorkspaceRoot = None, format_: Format = "table") -> None:
    """List the trials that no other beats in every objective."""
    from kt_ray.search.summary import pareto_rows
    from kt_ray.studies.workspace import Workspace

    rows = pareto_rows(Workspace.existing(workspace).study_storage, study)
    show(rows, rows, format_, f"Pareto front of {study}")


@app.command()
def importance(
    study: Study,
    objective: Annotated[int, typer.Option(min=0, help="Which objective, counted from 0.")] = 0,
    workspace: WorkspaceRoot = None,
    format_: Format = "table",
) -> None:
    """Show how much of the objective's variance each parameter explains."""
    from kt_ray.search.summary import importance_rows
    from kt_ray.studies.workspace import Workspace

    rows = importance_rows(Workspace.existing(workspace).study_storage, study, objective)
    show(rows, rows, format_, f"importance in {study}")


@app.command()
def export(
    study: Study,
    output: Annotated[Path, typer.Argument(metavar="FILE", help="Ends in .csv, .parquet or .json.")],
    workspace: WorkspaceRoot = None,
) -> None:
    """Write the trials of a study as a table."""
    from kt_ray.search.summary import export_trials
    from kt_ray.studies.workspace import Workspace

    count = export_trials(Workspace.existing(workspace).study_storage, study, output)
    say(f"wrote {count} trials to {output}")


@app.command()
def report(
    study: Study,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="In the study's directory if unset.")] = None,
    workspace: WorkspaceRoot = None,
) -> None:
    """Write one self-contained HTML page of a study."""
    from kt_ray.studies.study import Study as Opened
    from kt_ray.studies.workspace import Workspace

    say(f"wrote {Opened(study, Workspace.existing(workspace)).report(output)}")
