"""`kt-ray translate` and `kt-ray evaluate`: a translator at work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kt_ray.cli.options import CodeFiles, Device, Format, WorkspaceRoot, Zoo
from kt_ray.cli.output import say, show, show_json, show_table

app = typer.Typer()
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="models:/NAME@champion, models:/NAME/3, a translator file, or a bundled one: pretrained:fast, "
        "pretrained:exact, pretrained:basic_to_simple. `translate --network` takes probes: shapes, strokes, or "
        "mixture:DATASET.",
    ),
]


@app.command()
def translate(
    model: Model,
    checkpoint: Annotated[Path, typer.Argument(help="Network: safetensors, or a state_dict saved by torch.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The small network, as safetensors.")],
    dataset: Annotated[str | None, typer.Option(help="Measure accuracy before and after on its test images.")] = None,
    state_dict: Annotated[
        str | None, typer.Option(metavar="KEY", help="Which network of a checkpoint that holds several.")
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option("--site", metavar="PATH", help="Of a registered network: a block to translate; all if left out."),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="Translate all residual blocks of a whole network: a registered one, or torchvision:resnet18, …"
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="An option of --network (resnet: depth, width); repeatable."),
    ] = None,
    hidden: Annotated[float, typer.Option(help="With --network: the share of hidden units that blocks keep.")] = 0.5,
    image_shape: Annotated[
        str | None, typer.Option(metavar="CxHxW", help="With --network: what it takes, if no --dataset says so.")
    ] = None,
    classes: Annotated[int, typer.Option(help="With --network: its classes, if no --dataset says so.")] = 10,
    imagenet: Annotated[
        bool, typer.Option("--imagenet", help="With --network: images are normalised as torchvision's weights expect.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="With --network: optimiser steps after least squares. Unless set, 150 · (1 - hidden), up to 2.5 times "
            "as many for a network that is cheap to run.",
        ),
    ] = None,
    device: Device = "cpu",
    code: CodeFiles = None,
    workspace: WorkspaceRoot = None,
    format_: Format = "table",
) -> None:
    """Write the small network that a translator makes of a large one.

    With --network, every residual block is translated in forward order on the probes in MODEL, with no image of yours:

    kt-ray translate shapes resnet20.pth -o small.safetensors --network resnet --image-shape 3x32x32
    """
    from kt_ray.config import DatasetConfig
    from kt_ray.config import validate as checked
    from kt_ray.data import load_dataset
    from kt_ray.errors import ConfigError
    from kt_ray.jobs.device import use_device
    from kt_ray.studies.translators import translator_file
    from kt_ray.studies.whole_networks import NetworkRequest, parse_options, parse_shape, translate_named
    from kt_ray.studies.zoos import load_code
    from kt_ray.translation.report import TranslationReport
    from kt_ray.translation.translate import translate as run

    use_device(device)
    load_code(*(code or ()))
    images = load_dataset(checked(DatasetConfig, {"name": dataset}, "--dataset")) if dataset else None
    measured = {"dataset": images, "state_dict": state_dict, "device": device}
    if network is None:
        model_file = translator_file(model, workspace)
        report: TranslationReport = run(model_file, checkpoint, output, sites=sites, **measured)  # type: ignore[arg-type]
    else:
        if images is None and image_shape is None:
            raise ConfigError("--network needs --dataset, or --image-shape such as 3x32x32")
        shape = parse_shape(image_shape) if image_shape else images.image_shape  # type: ignore[union-attr]
        count = images.classes if images else classes
        request = NetworkRequest(network, parse_options(options), shape, count, imagenet)
        report = translate_named(request, model, checkpoint, output, hidden, steps=steps, **measured)  # type: ignore[arg-type]
    if format_ == "json":
        show_json(report.to_dict())
        return
    if report.site_rows():
        show_table(report.site_rows())
    show_table(report.display_rows(), report.display_title())
    say(f"read {checkpoint}: {report.checkpoint}")
    builder = f", and {report.builder}, which builds the network that loads it" if report.builder else ""
    say(f"wrote {output}{builder}")


@app.command()
def evaluate(
    model: Model,
    zoo: Zoo,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory for JSON, Markdown and figures.")
    ] = None,
    final: Annotated[
        bool, typer.Option("--test", help="Test members and test images: once, for a final table.")
    ] = False,
    fit_steps: Annotated[
        int, typer.Option(min=0, help="Also fit blocks to each member by so many steps: minutes, for comparison.")
    ] = 0,
    device: Device = "cpu",
    code: CodeFiles = None,
    workspace: WorkspaceRoot = None,
    format_: Format = "table",
) -> None:
    """Measure held-out networks of a zoo with translated blocks, beside other kinds of blocks."""
    from kt_ray.config import Split
    from kt_ray.studies import translators, zoos
    from kt_ray.studies.console import StudyConsole

    if output is not None:
        translators.make_output(output)
    zoos.load_code(*(code or ()))
    loaded, store = translators.load(model, workspace), zoos.open_zoo(zoo, workspace)
    split: Split = "test" if final else "selection"
    evaluation = translators.evaluate(loaded, store, split=split, fit_steps=fit_steps, device=device)
    written = translators.write_evaluation(evaluation, output) if output is not None else []
    if format_ == "json":
        show_json(evaluation.to_dict())
        return
    StudyConsole().result(evaluation)
    for path in written:
        say(f"wrote {path}")


Name = Annotated[str, typer.Argument(metavar="NAME", help="A registered model.")]


@app.command()
def champions(
    name: Name = "kt-translator",
    workspace: WorkspaceRoot = None,
    format_: Format = "table",
) -> None:
    """List the registered versions of a model; the champion is the best on selection images, not on test images."""
    from kt_ray.studies.workspace import Workspace
    from kt_ray.tracking.registry import champions as registered

    rows = [entry.to_dict() for entry in registered(Workspace.existing(workspace).tracking_uri, name)]
    brief = ("version", "champion", "selection_accuracy", "test_accuracy", "study", "trial", "registered")
    show(rows, [{key.replace("_", " "): row[key] for key in brief} for row in rows], format_, name)


@app.command()
def promote(
    name: Name,
    version: Annotated[int, typer.Argument(help="As `kt-ray champions` lists it.")],
    reason: Annotated[str, typer.Option(help="Kept in the version's description.")] = "",
    workspace: WorkspaceRoot = None,
) -> None:
    """Make a registered version the champion by hand, whatever its accuracy."""
    from kt_ray.studies.workspace import Workspace
    from kt_ray.tracking.promotion import promote as make_champion

    entry = make_champion(Workspace.existing(workspace).tracking_uri, name, version, reason)
    say(f"models:/{name}@champion is version {entry.version} now")
