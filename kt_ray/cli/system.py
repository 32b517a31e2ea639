"""`kt-ray ui` and `kt-ray doctor`: what stands around a study."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from kt_ray.cli.options import Format, WorkspaceRoot
from kt_ray.cli.output import say, show

app = typer.Typer()


@app.command()
def ui(
    workspace: WorkspaceRoot = None,
    port: Annotated[int, typer.Option(help="Port of the page.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback are open.")] = "127.0.0.1",
) -> None:
    """Open the MLflow UI on the workspace's store, on loopback, until Ctrl-C."""
    from kt_ray.studies.workspace import Workspace
    from kt_ray.tracking.ui import serve

    opened = Workspace.existing(workspace)
    raise typer.Exit(serve(opened.tracking_uri, opened.artifact_root, host, port, say))


@app.command()
def doctor(
    workspace: WorkspaceRoot = None,
    address: Annotated[str | None, typer.Option(help="Ask every node of this Ray cluster too: host:port.")] = None,
    format_: Format = "table",
) -> None:
    """Check versions, devices, Ray, stores and data; exit status 1 where something is broken."""
    from kt_ray.studies.doctor import examine
    from kt_ray.studies.workspace import Workspace

    checks = [asdict(check) for check in examine(Workspace.at(workspace), address)]
    show(checks, checks, format_)
    if any(check["verdict"] == "broken" for check in checks):
        raise typer.Exit(1)
