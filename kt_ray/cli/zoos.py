"""`kt-ray zoo`: build, look at and check a zoo."""

from __future__ import annotations

import typer

from kt_ray.cli.options import File, Format, Set, WorkspaceRoot, Zoo
from kt_ray.cli.output import say, show_json, show_table

zoo = typer.Typer(help="Build, look at and check zoos of trained networks.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.add_typer(zoo, name="zoo")


@zoo.command()
def build(file: File, overrides: Set = None, workspace: WorkspaceRoot = None) -> None:
    """Train the members that the zoo of a study file still lacks."""
    from kt_ray import lookup, pipeline
    from kt_ray.narrator import Narrator
    from kt_ray.spaces import locate
    from kt_ray.validation import read_study

    config = read_study(locate(file), overrides or ())
    with Narrator() as narrator:
        pipeline.build(config, lookup.open_workspace(config, workspace), narrator)
    say(f"next: kt-ray search {file}")


@zoo.command()
def info(name: Zoo, workspace: WorkspaceRoot = None, format_: Format = "table") -> None:
    """Show members, splits, accuracies, bytes and recipe of a zoo."""
    from kt_ray.lookup import open_zoo

    content = open_zoo(name, workspace).info().to_dict()
    if format_ == "json":
        show_json(content)
    else:
        show_table([{"": key, "value": value} for key, value in content.items()], f"zoo {name}")


@zoo.command()
def verify(name: Zoo, workspace: WorkspaceRoot = None) -> None:
    """Read every shard and check its hash; exit status 1 where something is damaged."""
    from kt_ray.lookup import open_zoo

    damages = open_zoo(name, workspace).verify()
    for damage in damages:
        say(damage)
    if damages:
        say("next: `kt-ray zoo build FILE` with the study file of this zoo trains what is damaged again")
        raise typer.Exit(1)
    say(f"zoo {name}: every shard is whole")
