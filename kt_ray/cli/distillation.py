"""`kt-ray distill`."""

from __future__ import annotations

import typer

from kt_ray.cli.options import File, Set, WorkspaceRoot


def register(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    app.command()(distill)


def distill(file: File, overrides: Set = None, workspace: WorkspaceRoot = None) -> None:
    """Train teacher, paraphraser and student of a distillation file, or search its space; register the student."""
    from kt_ray.studies import distilling
    from kt_ray.studies.console import Narrator
    from kt_ray.studies.spaces import locate
    from kt_ray.studies.workspace import Workspace

    config = distilling.read_distillation(locate(file), overrides or ())
    with Narrator() as narrator:
        distilling.run(config, Workspace.open(workspace, config.storage), narrator)
