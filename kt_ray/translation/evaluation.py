"""Transplants: how well members do with other blocks between their stem and head."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kt_ray._io.display import Displayed
from kt_ray.config import Split
from kt_ray.data import Dataset, LabelledImages, as_float
from kt_ray.errors import ZooError
from kt_ray.networks import Architecture, PaperArchitecture, State, stacked, structure
from kt_ray.networks.cost import multiply_adds, parameter_count
from kt_ray.translation import baselines
from kt_ray.translation.probe_images import strokes
from kt_ray.translation.site_walk import predictions, walk
from kt_ray.translation.support import can_project
from kt_ray.translation.translator import Translator
from kt_ray.translation.units import target_layout
from kt_ray.zoo.members import AnyZoo, SitesZoo, Zoo

BATCH = 250  # images at once
MEMBERS = 32  # members at once
PROBES = 64  # images that baselines are projected on
KEPT = 256 << 20  # bytes of stem activations
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
        """The table for people."""
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


class Transplants:
    """Members whose stems have seen some images: what they predict with one kind of block after another.

    Stem activations are kept, so that only blocks and heads are run again, where all of them take up to `keep` bytes.
    """

    def __init__(self, zoo: Zoo, images: LabelledImages, device: str | torch.device = "cpu", keep: int = KEPT) -> None:
        self.zoo, self.images, self.device = zoo, images, device
        parts = structure(zoo.architecture)
        self.stem, self.head = parts["stem"], parts["head"]
        size = 4 * len(zoo) * len(images) * prod(zoo.architecture.activation_shape)
        with torch.no_grad():
            self.kept = list(self._activations()) if size <= keep else None

    def _activations(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Some members, some images, and their stem activations [M, N, C, H, W]."""
        for start in range(0, len(self.zoo), MEMBERS):
            rows = slice(start, start + MEMBERS)
            stems = {name: value[rows].to(self.device) for name, value in self.zoo.part("stem").items()}
            for number, (batch, _) in enumerate(self.images.batches(BATCH)):
                columns = slice(number * BATCH, number * BATCH + len(batch))
                yield rows, columns, stacked.forward(self.stem, stems, batch.to(self.device), shared=True)

    @torch.no_grad()
    def predictions(self, blocks: Mapping[str, State]) -> dict[str, Tensor]:
        """Predicted classes [R, N], on the CPU, of every member with each kind of block; stems are run once for all."""
        modules = {name: _block(self.zoo, block) for name, block in blocks.items()}
        heads = {name: value.to(self.device) for name, value in self.zoo.part("head").items()}
        shape = len(self.zoo), len(self.images)
        predicted = {name: torch.empty(shape, dtype=torch.long, device=self.device) for name in blocks}
        for rows, columns, x in self._activations() if self.kept is None else self.kept:
            of_rows = {name: value[rows] for name, value in heads.items()}
            for name, block in blocks.items():
                state = {key: value[rows].to(self.device) for key, value in block.items()}
                outputs = stacked.forward(modules[name], state, x)
                predicted[name][rows, columns] = stacked.forward(self.head, of_rows, outputs).argmax(-1)
        return {name: classes.cpu() for name, classes in predicted.items()}

    def accuracy(self, blocks: State) -> Tensor:
        """Accuracy of each member with its row of `blocks` (source or target blocks) in place, float [R]."""
        predicted = self.predictions({"blocks": blocks})["blocks"]
        return (predicted == self.images.labels.cpu()).float().mean(1)


def transplant_accuracy(zoo: Zoo, blocks: State, images: LabelledImages) -> Tensor:
    """`Transplants.accuracy`, once."""
    return Transplants(zoo, images, next(iter(blocks.values())).device, keep=0).accuracy(blocks)


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
    device = next(translator.parameters()).device
    here = [translator.for_architecture(view.architecture).to(device) for view in views]
    found = [evaluate(one, view, dataset, members, images, fit_steps) for one, view in zip(here, views, strict=True)]
    rows = [_together(name, [one.row(name) for one in found]) for name in (row.name for row in found[0].rows)]
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
    accuracies = (predicted == labels).float().mean(1)
    whole = replace(
        translated,
        name="translated, all blocks",
        mean=float(accuracies.mean()),
        min=float(accuracies.min()),
        max=float(accuracies.max()),
        accuracies=tuple(accuracies.tolist()),
        agreement=float((predicted == original).float().mean()),
        seconds=seconds,
    )
    at_sites = [
        replace(one.row("translated"), name=f"translated, {site}") for site, one in zip(sites, found, strict=True)
    ]
    return replace(found[0], rows=(*rows, whole, *at_sites), confusion=_confusion(labels, predicted, dataset.classes))


def walked(translator: Translator, zoo: SitesZoo) -> Iterator[State]:
    """Yield stacks of the networks of `zoo`, under their own names, with all blocks translated; `MEMBERS` at once."""
    device, architecture = next(translator.parameters()).device, zoo.architecture
    networks = stacked.part(zoo.parameters, "network")
    for start in range(0, len(zoo), MEMBERS):
        some = {name: value[start : start + MEMBERS].to(device) for name, value in networks.items()}
        for _, _, small in walk(translator, architecture, some, architecture.sites):
            some = small
        yield some


def network_accuracies(translator: Translator, zoo: SitesZoo, images: LabelledImages) -> Tensor:
    """Return the accuracy of each network of `zoo` with all blocks translated, float [R]."""
    sites, labels = zoo.architecture.sites, images.labels.cpu()
    predicted = [predictions(zoo.architecture, some, images, sites, BATCH) for some in walked(translator, zoo)]
    return (torch.cat(predicted).cpu() == labels).float().mean(1)


def _together(name: str, rows: list[Row]) -> Row:
    """One row of the rows called `name` at several sites."""
    accuracies = [accuracy for row in rows for accuracy in row.accuracies]
    seconds = [row.seconds for row in rows if row.seconds is not None]
    return Row(
        name=name,
        mean=sum(accuracies) / len(accuracies),
        min=min(accuracies),
        max=max(accuracies),
        accuracies=tuple(accuracies),
        agreement=sum(row.agreement for row in rows) / len(rows),
        parameters=sum(row.parameters for row in rows),
        multiply_adds=sum(row.multiply_adds for row in rows),
        seconds=sum(seconds) if seconds else None,
    )


def free_accuracies(zoo: AnyZoo, dataset: Dataset, split: Split = "selection") -> dict[str, float]:
    """Return mean accuracies of blocks that cost nothing, by name: the zero block and those made without learning.

    Measured on the members and the images of `split`; of several sites, of those blocks that are known at all.
    """
    found = [_free_accuracies(view, dataset, split) for view in zoo.views()]
    names = [name for name in found[0] if all(name in one for one in found)]
    return {name: sum(one[name] for one in found) / len(found) for name in names}


def _free_accuracies(zoo: Zoo, dataset: Dataset, split: Split) -> dict[str, float]:
    members = zoo.where(split)
    source, architecture = members.part("source"), zoo.architecture
    blocks = (
        {} if target_layout(architecture).flat else {"zero block": baselines.zero_block(architecture, len(members))}
    )
    for base in baselines.one_shot_bases(architecture):
        blocks[f"{base} block"] = baselines.one_shot_block(source, architecture, base=base)
    images = dataset.images(split)
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
        makers[f"{base} block"] = partial(baselines.one_shot_block, source, architecture, base=base)
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
            Row(
                name=name,
                mean=float(accuracies.mean()),
                min=float(accuracies.min()),
                max=float(accuracies.max()),
                accuracies=tuple(accuracies.tolist()),
                agreement=float((classes == predicted["source"]).float().mean()),
                parameters=parameter_count(block),
                multiply_adds=multiply_adds(block, architecture.activation_shape),
                seconds=seconds.get(name),
            )
        )
    return tuple(rows)


def readable(zoo: Zoo) -> State:
    """Return what a translator may read of every member: the source block's names, `stem.…` and `head.…`."""
    return zoo.part("source") | stacked.surroundings(zoo.parameters)


@torch.no_grad()
def translate(translator: nn.Module, zoo: Zoo) -> State:
    """The translated target block of every member of `zoo`, on the CPU."""
    device = next(translator.parameters()).device
    members, parts = readable(zoo), []
    translator.eval()
    for start in range(0, len(zoo), MEMBERS):
        written: State = translator(
            {name: value[start : start + MEMBERS].to(device) for name, value in members.items()}
        )
        parts.append(written)
    return {name: torch.cat([part[name].detach().cpu() for part in parts]) for name in parts[0]}


def _confusion(labels: Tensor, predicted: Tensor, classes: int) -> tuple[tuple[int, ...], ...]:
    """Return how often each class was predicted for each label, over all members."""
    counts = torch.bincount((labels * classes + predicted).flatten(), minlength=classes**2)
    return tuple(tuple(row) for row in counts.reshape(classes, classes).tolist())


def _block(zoo: Zoo, block: Mapping[str, Tensor]) -> nn.Module:
    """The structure whose parameters these are, the source's or the target's, for what heads read."""
    parts = structure(zoo.architecture)
    source, target = parts["source"], parts["target"]
    shapes = {name: value.shape[1:] for name, value in block.items()}
    parameters = {name: value.shape for name, value in source.state_dict().items() if name in shapes}
    return source if parameters == shapes and dict(source.named_parameters()).keys() <= shapes.keys() else target
