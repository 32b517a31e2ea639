"""Options that several commands share, and what they all do first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

File = Annotated[str, typer.Argument(metavar="FILE", help="A study file, or the name of a bundled one.")]
Study = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study in the workspace.")]
Zoo = Annotated[
    str,
    typer.Argument(
        metavar="ZOO",
        help="Name of a zoo in the workspace, its directory or URI, or pretrained:mnist5k (bundled).",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a value of the study file; repeatable."),
]
WorkspaceRoot = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        "-w",
        metavar="DIR",
        envvar="KT_RAY_WORKSPACE",
        help="Where zoos, studies and MLflow's store are kept.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", help="What computes: cpu, or a GPU as torch names it: cuda, cuda:1, mps.")
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Let the Python files under `code` of the study run, now and from then on in this workspace.",
    ),
]
AllowInclude = Annotated[
    list[Path] | None,
    typer.Option(
        "--allow-include",
        metavar="DIR",
        file_okay=False,
        exists=True,
        help="Let the study file include files of this folder, besides those beside or below it; repeatable.",
    ),
]
CodeFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--code",
        metavar="FILE",
        help="A Python file that registers the networks at hand, which then runs; repeatable.",
    ),
]
Format = Annotated[Literal["table", "json"], typer.Option("--format", help="A table to read, or JSON for programs.")]
