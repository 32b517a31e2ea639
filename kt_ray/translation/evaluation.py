"""The accuracy of members with translated blocks and with every other kind of block: a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kt_ray._io.display import Displayed
from kt_ray.config import Split
from kt_ray.data import Dataset, as_float
from kt_ray.errors import ZooError
from kt_ray.networks import Architecture, PaperArchitecture, State
from kt_ray.networks.cost import multiply_adds, parameter_count
from kt_ray.translation import baselines
from kt_ray.translation.bases import one_shot_block
from kt_ray.translation.probe_images import strokes
from kt_ray.translation.site_walk import predictions
from kt_ray.translation.support import can_project
from kt_ray.translation.translator import Translator
from kt_ray.translation.transplants import BATCH, Transplants, translate, walked
from kt_ray.translation.units import target_layout
from kt_ray.zoo.members import AnyZoo, SitesZoo, Zoo

PROBES = 64  # images that baselines are projected on
Rows = TypeVar("Rows", Zoo, SitesZoo)


@dataclass(frozen=True)
class Row:
    """One kind of block in every member: accuracies, agreement with the source's predictions, cost.

    `multiply_adds` are the block's for one image; `seconds` is what making one member's block took, None where it was
    made elsewhere.
    """

    name: str
    mean: float
    min: float
    max: float
    accuracies: tuple[float, ...]
    agreement: float
    parameters: int
    multiply_adds: int
    seconds: float | None

    @classmethod
    def of(cls, name: str, accuracies: Tensor, **facts: Any) -> Row:
        """Return the row of these accuracies, float [R]."""
        mean, least, most = float(accuracies.mean()), float(accuracies.min()), float(accuracies.max())
        return cls(name, mean, least, most, tuple(accuracies.tolist()), **facts)


@dataclass(frozen=True, repr=False)
class Evaluation(Displayed):
    """A table of transplants, a row for each kind of block."""

    rows: tuple[Row, ...]
    members: str
    images: str
    member_count: int
    image_count: int
    zoo: str
    dataset: str
    confusion: tuple[tuple[int, ...], ...] = ()  # labels × predictions with translated blocks, over all members

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def display_title(self) -> str:
        images = f"{self.image_count:,} {self.images} images of {self.dataset}"
        return f"{self.member_count} {self.members} members × {images}: accuracy by block"

    def display_rows(self) -> list[dict[str, Any]]:
        shown = ("mean", "min", "max", "agreement", "parameters", "multiply_adds")
        return [
            {"block": row.name}
            | {name.replace("_", "-"): getattr(row, name) for name in shown}
            | {"ms a block": None if row.seconds is None else round(1000 * row.seconds, 2)}
            for row in self.rows
        ]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_markdown(self) -> str:
        head = (
            f"{self.member_count} {self.members} members, "
            f"{self.image_count:,} {self.images} images of {self.dataset}\n\n"
            "| block | mean | min | max | agreement | parameters | multiply-adds | seconds |\n"
            "|---|---|---|---|---|---|---|---|\n"
        )
        return head + "".join(
            f"| {row.name} | {row.mean:.4f} | {row.min:.4f} | {row.max:.4f} | {row.agreement:.4f} | {row.parameters:,} "
            f"| {row.multiply_adds:,} | {'-' if row.seconds is None else f'{row.seconds:.2g}'} |\n"
            for row in self.rows
        )


def evaluate(
    translator: Translator,
    zoo: AnyZoo,
    dataset: Dataset,
    members: Split = "test",
    images: Split = "test",
    fit_steps: int = 0,
    others: Mapping[str, State] | None = None,
) -> Evaluation:
    """Every kind of block in the `members` of `zoo`, on the `images` of `dataset`.

    Everything runs on the device of `translator`. Of a zoo with several sites, a row's accuracies are those of all
    members with one block at a time, site after site, its costs those of all blocks together; further rows are of the
    networks with all blocks translated, and of the translated block at each site.

    With `fit_steps` also blocks fitted to each member by so many steps, with and without data: seconds a member.
    `others` are further stacks of target blocks, a row each. Members without a target, as imported ones may be, are
    evaluated where the split has no others, without the trained target's row; a zoo without training members has
    none of what is made of their targets. Raises ZooError where the split has no members at all.
    """
    if isinstance(zoo, SitesZoo):
        return _at_all_sites(translator, zoo, dataset, members, images, fit_steps)
    device = next(translator.parameters()).device
    held_out, train = _members(zoo, members).to(device), zoo.where("train").to(device)
    blocks = {"source": held_out.part("source")}
    if all(held_out.index["has_target"].to_pylist()):
        blocks["trained target"] = held_out.part("target")
    seconds = {}
    for name, make in _makers(translator, held_out, train, dataset, fit_steps).items():
        started = time.perf_counter()
        blocks[name] = make()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the time of the work, not of giving it to the device
        seconds[name] = (time.perf_counter() - started) / len(held_out)
    blocks |= others or {}
    pictures = dataset.images(images).to(device)
    labels = pictures.labels.cpu()
    predicted = Transplants(held_out, pictures, device, keep=0).predictions(blocks)
    rows = _rows(predicted, labels, zoo.architecture, seconds)
    confusion = _confusion(labels, predicted["translated"], dataset.classes)
    counts = len(held_out), len(pictures)
    return Evaluation(rows, members, images, *counts, zoo=zoo.fingerprint, dataset=dataset.name, confusion=confusion)


def _at_all_sites(
    translator: Translator, zoo: SitesZoo, dataset: Dataset, members: Split, images: Split, fit_steps: int
) -> Evaluation:
    """`evaluate` at each site, made into one table."""
    views = zoo.views()
    here = [translator.for_architecture(view.architecture) for view in views]
    found = [evaluate(one, view, dataset, members, images, fit_steps) for one, view in zip(here, views, strict=True)]
    known = [row.name for row in found[0].rows if all(row.name in {other.name for other in one.rows} for one in found)]
    rows = [_together([one.row(name) for one in found]) for name in known]
    held_out, pictures = _members(zoo, members), dataset.images(images)
    labels = pictures.labels.cpu()
    source = Transplants(held_out.views()[0], pictures, keep=0)
    original = source.predictions({"source": source.zoo.part("source")})["source"]
    started = time.perf_counter()
    networks = list(walked(translator, held_out))
    seconds = (time.perf_counter() - started) / len(held_out)
    sites = zoo.architecture.sites
    predicted = torch.cat([predictions(zoo.architecture, some, pictures, sites, BATCH).cpu() for some in networks])
    translated = next(row for row in rows if row.name == "translated")
    whole = Row.of(
        "translated, all blocks",
        (predicted == labels).float().mean(1),
        agreement=float((predicted == original).float().mean()),
        parameters=translated.parameters,
        multiply_adds=translated.multiply_adds,
        seconds=seconds,
    )
    at_sites = [
        replace(one.row("translated"), name=f"translated, {site}") for site, one in zip(sites, found, strict=True)
    ]
    return replace(found[0], rows=(*rows, whole, *at_sites), confusion=_confusion(labels, predicted, dataset.classes))


def _together(rows: list[Row]) -> Row:
    """Return one row of the rows of a kind of block at several sites."""
    seconds = [row.seconds for row in rows if row.seconds is not None]
    return Row.of(
        rows[0].name,
        torch.tensor([accuracy for row in rows for accuracy in row.accuracies]),
        agreement=sum(row.agreement for row in rows) / len(rows),
        parameters=sum(row.parameters for row in rows),
        multiply_adds=sum(row.multiply_adds for row in rows),
        seconds=sum(seconds) if seconds else None,
    )


def free_accuracies(zoo: AnyZoo, dataset: Dataset) -> dict[str, float]:
    """Return mean accuracies of blocks that cost nothing, by name: the zero block and those made without learning.

    Measured on selection members and selection images; of several sites, of those blocks that are known at all.
    """
    found = [_free_accuracies(view, dataset) for view in zoo.views()]
    names = [name for name in found[0] if all(name in one for one in found)]
    return {name: sum(one[name] for one in found) / len(found) for name in names}


def _free_accuracies(zoo: Zoo, dataset: Dataset) -> dict[str, float]:
    members, images = zoo.where("selection"), dataset.selection
    source, architecture = members.part("source"), zoo.architecture
    blocks = (
        {} if target_layout(architecture).flat else {"zero block": baselines.zero_block(architecture, len(members))}
    )
    for base in baselines.one_shot_bases(architecture):
        blocks[f"{base} block"] = one_shot_block(source, architecture, base=base)
    predicted = Transplants(members, images, keep=0).predictions(blocks)
    labels = images.labels.cpu()
    return {name: float((classes == labels).float().mean()) for name, classes in predicted.items()}


def _members(zoo: Rows, split: Split) -> Rows:
    """Return the members of `split` that have a target, all of them if none has one."""
    found = zoo.where(split)
    if not len(found):
        found = zoo.where(split, with_target=False)
    if not len(found):
        others = ", ".join(sorted(set(zoo.index["split"].to_pylist())))
        raise ZooError(
            f"zoo {zoo.fingerprint} has no {split} members, only {others}; `kt-ray evaluate` takes selection members, "
            "with --test test members"
        )
    return found


def _makers(
    translator: nn.Module, held_out: Zoo, train: Zoo, dataset: Dataset, fit_steps: int
) -> dict[str, Callable[[], State]]:
    """Return functions that make target blocks for the members of `held_out`, by name, in the order of the table."""
    architecture, count, source = held_out.architecture, len(held_out), held_out.part("source")
    makers: dict[str, Callable[[], State]] = {
        "translated": lambda: translate(translator, held_out),
        "random target": lambda: baselines.random_target(architecture, count),
    }
    if not target_layout(architecture).flat:
        makers["zero block"] = lambda: baselines.zero_block(architecture, count)
    if len(train):
        makers["nearest member's target"] = lambda: baselines.nearest_target(train, held_out)
        makers["mean target"] = lambda: baselines.mean_target(train, count)
    for base in baselines.one_shot_bases(architecture):
        makers[f"{base} block"] = partial(one_shot_block, source, architecture, base=base)
    if not can_project(architecture):
        return makers
    device = next(translator.parameters()).device
    drawn = strokes(PROBES, architecture.image_shape, torch.Generator().manual_seed(0)).to(device)
    makers["projected block, random strokes"] = partial(baselines.projected, held_out, drawn)
    few = as_float(dataset.train.images[:PROBES]).to(device)
    makers["projected block, training images"] = partial(baselines.projected, held_out, few)
    if fit_steps:
        inputs: dict[str, baselines.Inputs] = {
            "training images": dataset.train.to(device),
            "random strokes": "strokes",
        }
        if isinstance(architecture, PaperArchitecture):
            inputs["BN statistics"] = "statistics"
        for name, given in inputs.items():
            makers[f"fitted on {name}, {fit_steps} steps"] = partial(baselines.fitted, held_out, fit_steps, given)
    return makers


def _rows(
    predicted: Mapping[str, Tensor], labels: Tensor, architecture: Architecture, seconds: Mapping[str, float]
) -> tuple[Row, ...]:
    """A row for each kind of block in `predicted`, classes [R, N] of images with `labels` [N]."""
    with torch.random.fork_rng(devices=[]):
        kinds = {"source": architecture.source_block(), "target": architecture.target_block()}
    rows = []
    for name, classes in predicted.items():
        accuracies = (classes == labels).float().mean(1)
        block = kinds["source" if name == "source" else "target"]
        rows.append(
            Row.of(
                name,
                accuracies,
                agreement=float((classes == predicted["source"]).float().mean()),
                parameters=parameter_count(block),
                multiply_adds=multiply_adds(block, architecture.activation_shape),
                seconds=seconds.get(name),
            )
        )
    return tuple(rows)


def _confusion(labels: Tensor, predicted: Tensor, classes: int) -> tuple[tuple[int, ...], ...]:
    """Return how often each class was predicted for each label, over all members."""
    counts = torch.bincount((labels * classes + predicted).flatten(), minlength=classes**2)
    return tuple(tuple(row) for row in counts.reshape(classes, classes).tolist())
