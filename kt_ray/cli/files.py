"""`kt-ray spaces` and `kt-ray validate`: study files before anything runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from kt_ray.cli.options import AllowCode, AllowInclude, File, Format, Set
from kt_ray.cli.output import say, show, show_json, show_table

EXPLAINED = "`kt-ray spaces explain PATH` describes any of these paths"
app = typer.Typer()
spaces = typer.Typer(help="Bundled study files: list, show, copy; explain a key of study files.", no_args_is_help=True)
app.add_typer(spaces, name="spaces")


@spaces.command("list")
def list_spaces(format_: Format = "table") -> None:
    """List the bundled study files."""
    from kt_ray.studies.spaces import bundled, description

    rows = [{"name": name, "description": description(path)} for name, path in bundled().items()]
    show(rows, rows, format_)


@spaces.command("show")
def show_space(
    file: File, allow_code: AllowCode = False, allow_include: AllowInclude = None, format_: Format = "table"
) -> None:
    """Show the search space of a study file as a table, with its size."""
    from kt_ray.search.space import size
    from kt_ray.studies.permission import Permission
    from kt_ray.studies.spaces import locate
    from kt_ray.studies.study_file import read_study_file, space_rows

    config = read_study_file(locate(file), permission=Permission.at(given=allow_code, includes=allow_include))
    rows = space_rows(config)
    if format_ == "json":
        show_json({"name": config.name, "space": rows, "size": size(config.space, config.trial)})
        return
    show_table(rows, config.description.strip() or config.name)
    say(f"size: {size(config.space, config.trial)}\n{EXPLAINED}")


@spaces.command("explain")
def explain(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Of a study file or space: loss.kl, search.pruner, …")],
    format_: Format = "table",
) -> None:
    """Describe a key of study files: type, range, default, meaning and what reads it; of a mapping, its keys too."""
    from kt_ray._io.tables import render_facts, terminal_width
    from kt_ray.config.reference import find, section_keys

    keys = find(path)
    if format_ == "json":
        show_json([{"path": key.path, **key.facts()} for key in keys])
        return
    for key in keys:
        say(render_facts(key.facts(), key.path, terminal_width()) + "\n")
        inner = [part for model in key.inner for part in section_keys(key.kinds[0], model)]
        if inner:
            show_table([part.row() for part in inner])


@spaces.command("copy")
def copy_space(
    file: File, destination: Annotated[Path, typer.Argument(help="Directory or new file.")] = Path()
) -> None:
    """Copy a bundled study file, to change it."""
    from kt_ray.studies.spaces import copy

    target = copy(file, destination)
    say(f"wrote {target}\nnext: kt-ray validate {target}")


@app.command()
def validate(
    file: File,
    overrides: Set = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ask every node of this Ray cluster too: host:port, or its job server's http://…."),
    ] = None,
    workspace: Annotated[str | None, typer.Option("--workspace", "-w", help="With --address: the one there.")] = None,
    allow_code: AllowCode = False,
    allow_include: AllowInclude = None,
    format_: Format = "table",
) -> None:
    """Report every fault of a study file with its line; if there is none, train one batch of a trial.

    `include: FILE` in a mapping of the file stands for the entries of that file, whose path is relative to it.
    """
    from kt_ray.studies.permission import Permission
    from kt_ray.studies.spaces import locate
    from kt_ray.studies.validation import validate_file

    path, permission = locate(file), Permission.at(given=allow_code, includes=allow_include)
    validation = validate_file(path, overrides or (), here=address is None, permission=permission)
    content: dict[str, Any] = asdict(validation)
    cluster = None
    if address is not None:
        from kt_ray.studies.cluster_check import check_cluster

        cluster = check_cluster(path, address, workspace=workspace, overrides=overrides or (), permission=permission)
        content["cluster"] = asdict(cluster)
    if format_ == "json":
        show_json(content)
    else:
        for line in (*validation.lines(), "`kt-ray spaces explain PATH` describes a key of the file"):
            say(line)
        if cluster is not None:
            show_table(cluster.rows(), "cluster")
            for problem in cluster.problems:
                say(problem)
    if cluster is not None and cluster.problems:
        raise typer.Exit(1)
