"""`kt-ray zoo`: build, look at and check a zoo."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from kt_ray.cli.options import AllowCode, AllowInclude, CodeFiles, File, Format, Set, WorkspaceRoot, Zoo
from kt_ray.cli.output import say, show

app = typer.Typer()
zoo = typer.Typer(help="Build, look at and check zoos of trained networks.", no_args_is_help=True)
app.add_typer(zoo, name="zoo")


@zoo.command()
def build(
    file: File,
    overrides: Set = None,
    workspace: WorkspaceRoot = None,
    allow_code: AllowCode = False,
    allow_include: AllowInclude = None,
) -> None:
    """Train the members that are missing in the zoo of a study file."""
    from kt_ray.studies.console import StudyConsole
    from kt_ray.studies.permission import Permission
    from kt_ray.studies.spaces import locate
    from kt_ray.studies.study_file import read_study
    from kt_ray.studies.translation_study import build_zoo_of
    from kt_ray.studies.workspace import Workspace

    config = read_study(locate(file), overrides or (), Permission.at(workspace, allow_code, allow_include))
    with StudyConsole() as console:
        build_zoo_of(config, Workspace.open(workspace, config.storage), console)
    say(f"next: kt-ray search {shlex.quote(file)}")


@zoo.command()
def info(name: Zoo, code: CodeFiles = None, workspace: WorkspaceRoot = None, format_: Format = "table") -> None:
    """Show members, splits, accuracies, bytes and recipe of a zoo."""
    from kt_ray.studies.zoos import load_code, open_zoo

    load_code(*(code or ()))
    found = open_zoo(name, workspace).info()
    show(found.to_dict(), found.facts(), format_, f"zoo {name}")


@zoo.command()
def verify(name: Zoo, code: CodeFiles = None, workspace: WorkspaceRoot = None) -> None:
    """Read and check every file of a zoo; exit status 1 if something is damaged."""
    from kt_ray.studies.zoos import load_code, open_zoo

    load_code(*(code or ()))
    damages = open_zoo(name, workspace).verify()
    for damage in damages:
        say(damage)
    if damages:
        say("next: `kt-ray zoo build FILE` with the study file of this zoo mends it")
        raise typer.Exit(1)
    say(f"zoo {name}: every file is whole")


@zoo.command()
def merge(
    into: Annotated[str, typer.Argument(metavar="ZOO", help="Name of a zoo in the workspace, its directory or URI.")],
    sources: Annotated[list[str], typer.Argument(metavar="ZOO…", help="Zoos of the same pair, recipe and dataset.")],
    code: CodeFiles = None,
    workspace: WorkspaceRoot = None,
) -> None:
    """Add the members of other zoos to the first, which is made if there is none."""
    from kt_ray.studies.workspace import Workspace
    from kt_ray.studies.zoos import load_code, open_zoo
    from kt_ray.zoo.merging import merge_zoos
    from kt_ray.zoo.store import ZooStore, zoo_name

    load_code(*(code or ()))
    goal = ZooStore(into if "/" in into else Workspace.open(workspace).zoo(zoo_name(into)))
    added = merge_zoos([open_zoo(name, workspace) for name in sources], goal)
    say(f"added {added} members to {goal.uri}")


@zoo.command("export")
def export_(
    name: Zoo,
    folder: Annotated[Path, typer.Argument(help="Where inputs/, labels/, begin/, … go.")],
    workspace: WorkspaceRoot = None,
) -> None:
    """Write a zoo in the layout of the paper's code, a .pth file a part of a member."""
    from kt_ray.studies.zoos import open_zoo
    from kt_ray.zoo.paper_layout import export_zoo

    counts = export_zoo(open_zoo(name, workspace).read(), folder)
    say("\n".join(f"{folder / part}: {count} files" for part, count in counts.items()))


@zoo.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="A folder in the layout of the paper's code.")],
    file: File,
    overrides: Set = None,
    workspace: WorkspaceRoot = None,
    allow_code: AllowCode = False,
    allow_include: AllowInclude = None,
) -> None:
    """Add networks in the paper's layout to the zoo that a study file names."""
    from kt_ray.data import load_dataset
    from kt_ray.studies.permission import Permission
    from kt_ray.studies.spaces import locate
    from kt_ray.studies.study_file import read_study
    from kt_ray.studies.workspace import Workspace
    from kt_ray.zoo.paper_layout import import_zoo
    from kt_ray.zoo.store import ZooStore

    config = read_study(locate(file), overrides or (), Permission.at(workspace, allow_code, allow_include))
    store = ZooStore(Workspace.open(workspace, config.storage).zoo(config.zoo.name))
    count = import_zoo(folder, store, config.zoo, config.pair, load_dataset(config.dataset))
    say(f"added {count} members to {store.uri}")
