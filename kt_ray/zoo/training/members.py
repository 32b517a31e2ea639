"""Training many members: plain PyTorch on tensors, no Ray, no DataLoader.

A member's initialisation, hyper-parameters and data order come from its own generators, so its numbers do not
depend on the members trained beside it: not at all with the implementation "fused", but for rounding with others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor, nn

from kt_ray.config import PhaseConfig, RecipeConfig
from kt_ray.data import Dataset, LabelledImages
from kt_ray.jobs.cuda_graphs import Recorder, can_record
from kt_ray.jobs.device import device_name, free_memory
from kt_ray.networks import AnyArchitecture, Architecture, State, stacked
from kt_ray.zoo.members import Member, site_columns
from kt_ray.zoo.recipe import (
    Draw,
    Hyperparameters,
    Order,
    counted_epoch,
    epoch_of,
    learning_rates,
    ranges_of,
    recipe_of,
    steps_of,
)
from kt_ray.zoo.training import fused
from kt_ray.zoo.training.objectives import Candidate, Objective, source_objective, target_objective
from kt_ray.zoo.training.optimizers import Optimizer, Parameters
from kt_ray.zoo.training.stacking import Implementation, fresh

CACHE_BYTES = 1 << 30  # of stem activations kept on a CPU for the target phase; else they are computed anew


@dataclass(frozen=True)
class Plan:
    """How a device trains members fastest: an implementation for each phase, and how many members at once."""

    source: Implementation = "fused"
    target: Implementation = "fused"
    at_once: int = 1
    bfloat16: bool = False
    compile: bool = False
    counter_draws: bool = False  # orders, flips and shifts hashed on the device: see `recipe.counted_epoch`
    recorded: bool = False  # a step is a CUDA graph

    def of(self, phase: str) -> Candidate:
        """Return how `phase`, "source" or "target", is trained."""
        return Candidate(getattr(self, phase), self.at_once, self.bfloat16, self.compile, self.recorded)

    def __str__(self) -> str:
        options = [name for name in ("bfloat16", "compile", "counter_draws", "recorded") if getattr(self, name)]
        return ", ".join([f"{self.source} and {self.target}", f"{self.at_once} at once", *options])


def default_plan(architecture: AnyArchitecture, device: str) -> Plan:
    """A plan without measuring: fused kernels on a CPU where they cover the pair, stacked networks elsewhere."""
    if device != "cpu":
        return Plan("grouped", "grouped", 64, counter_draws=True, recorded=can_record(device))
    return Plan(
        "fused" if fused.supports_source(architecture) else "grouped",
        "fused" if fused.supports_target(architecture) else "grouped",
        4,
    )


def train_members(
    members: Sequence[Member],
    recipe: RecipeConfig,
    architecture: AnyArchitecture,
    dataset: Dataset,
    device: str = "cpu",
    plan: Plan | None = None,
) -> tuple[State, pa.Table]:
    """Train `members`: source networks, then their targets between the frozen stem and head.

    Returns a stack on the CPU as the zoo in memory has it (`Zoo`, `SitesZoo`), one row a member and snapshot, in the
    order of `members`, and its index (see `index_schema`); targets of snapshots and of brief members are NaN.
    Accuracies are on selection images.
    """
    plan = plan or default_plan(architecture, device)
    training, selection = dataset.train.to(device), dataset.selection.to(device)
    jobs = [(member, *recipe_of(recipe, member)) for member in members]
    results: dict[str, list[tuple[State, Row]]] = {}
    for group in _alike(jobs):
        for start in range(0, len(group), plan.at_once):
            chunk = group[start : start + plan.at_once]
            results |= _train_chunk(chunk, architecture, training, selection, plan)
    rows = [entry for member in members for entry in results[member.id]]
    return stacked.stack([state for state, _ in rows]), pa.Table.from_pylist(
        [row for _, row in rows], schema=index_schema(recipe, architecture)
    )


Job = tuple[Member, RecipeConfig, Hyperparameters]
Row = dict[str, str | int | float | bool]


def index_schema(recipe: RecipeConfig, architecture: AnyArchitecture) -> pa.Schema:
    """Columns of a zoo's index, one for each of several sites and for each hyper-parameter that varies.

    `seconds` is what training a member took; `device` names what trained it, `plan` how.
    """
    base = {
        "id": pa.string(),
        "seed": pa.int64(),
        "split": pa.string(),
        "epoch": pa.int32(),
        "has_target": pa.bool_(),
        "source_accuracy": pa.float64(),
        "target_accuracy": pa.float64(),
        "seconds": pa.float64(),
        "device": pa.string(),
        "plan": pa.string(),
    }
    return pa.schema(base | {name: pa.float64() for name in (*site_columns(architecture), *ranges_of(recipe))})


def _alike(jobs: list[Job]) -> list[list[Job]]:
    """Jobs that can be trained in one stack: as many steps, shifted or not, with a target or not."""
    groups: dict[object, list[Job]] = {}
    for job in jobs:
        member, recipe, _ = job
        shape = (member.brief, recipe.source.epochs, recipe.target.epochs, recipe.shift)
        groups.setdefault(shape, []).append(job)
    return list(groups.values())


def _train_chunk(
    jobs: list[Job], architecture: AnyArchitecture, training: LabelledImages, selection: LabelledImages, plan: Plan
) -> dict[str, list[tuple[State, Row]]]:
    """Rows of each member by its id."""
    began = time.perf_counter()
    members, recipes = [job[0] for job in jobs], [job[1] for job in jobs]
    recipe, device = recipes[0], training.images.device

    def orders(phase: str) -> list[Order]:
        return [
            Order(member.seed_of(f"{phase} order"), len(training), recipe)
            for member, recipe in zip(members, recipes, strict=True)
        ]

    def start(build: Callable[[], nn.Module], phase: str, copied: State | None = None) -> Parameters:
        state = fresh(build, [member.seed_of(phase) for member in members])
        scale = torch.tensor([recipe.initial_scale for recipe in recipes])
        for value in state.values():
            if value.dim() == 5:  # convolutions
                value *= scale[:, None, None, None, None]
        return Parameters(stacked.to(state, device), copied)

    source = source_objective(architecture, len(jobs), training, plan.of("source"))
    network = start(architecture.source_network, "source")
    kept: dict[int, State] = {}

    def keep(epoch: int) -> None:
        if epoch in recipe.snapshots:
            kept[epoch] = network.copy()

    def draw(phase: str) -> Callable[[int], Draw]:
        """What draws an epoch (from 1) of all members."""
        if plan.counter_draws:
            seeds = torch.tensor([member.seed_of(f"{phase} order") for member in members], device=device)
            return lambda epoch: counted_epoch(seeds, epoch, len(training), recipe)
        generators = orders(phase)
        return lambda epoch: epoch_of(generators, device)

    sources = [recipe.source for recipe in recipes]
    last = descend(network, source, training, draw("source"), sources, keep, recorded=plan.recorded)
    kept[last] = network.copy()
    accuracies = {epoch: source.accuracy(state, selection) for epoch, state in kept.items()}
    seen = architecture.seen(kept[last])
    targets = [
        {name: torch.full_like(value, math.nan) for name, value in fresh(view.target_block, [0] * len(jobs)).items()}
        for view, _ in seen
    ]
    blank, target_accuracies = targets, torch.full((len(seen), len(jobs)), math.nan, dtype=torch.float64)

    def train_target(view: Architecture, cut: State, purpose: str) -> tuple[State, Tensor]:
        """The trained target blocks of one site, and their accuracies."""
        frozen = stacked.surroundings(cut)
        block = start(view.target_block, purpose, view.layouts()[1].copied_of(stacked.part(cut, "block")))
        target = _target_objective(view, frozen, training, recipe, plan)
        phases = [recipe.target for recipe in recipes]
        descend(block, target, training, draw(purpose), phases, recorded=plan.recorded)
        return stacked.to(block.copy(), "cpu"), target.accuracy(block.state, selection)

    if not members[0].brief:
        for number, (view, cut) in enumerate(seen):
            purpose = "target" if len(seen) == 1 else f"target at {architecture.sites[number]}"
            trained, target_accuracies[number] = train_target(view, cut, purpose)
            targets = [trained if place == number else other for place, other in enumerate(targets)]

    # One copy a tensor for all members.
    kept = {epoch: stacked.to(state, "cpu") for epoch, state in kept.items()}
    stacks = {epoch: architecture.stored(state, targets if epoch == last else blank) for epoch, state in kept.items()}
    source_accuracies = {epoch: accuracy.tolist() for epoch, accuracy in accuracies.items()}
    columns = ("target_accuracy", *site_columns(architecture))
    by_column = dict(zip(columns, [target_accuracies.mean(0), *target_accuracies], strict=False))  # none for one site
    seconds, name = (time.perf_counter() - began) / len(jobs), device_name(device)
    results: dict[str, list[tuple[State, Row]]] = {}
    for i, (member, _, drawn) in enumerate(jobs):
        for epoch, stack in stacks.items():
            entry: Row = {
                "id": member.id,
                "seed": member.seed,
                "split": member.split,
                "epoch": epoch,
                "has_target": epoch == last and not member.brief,
                "source_accuracy": source_accuracies[epoch][i],
                **{name: float(found[i]) if epoch == last else math.nan for name, found in by_column.items()},
                "seconds": seconds if epoch == last else 0.0,
                "device": name,
                "plan": str(plan),
                **drawn,
            }
            results.setdefault(member.id, []).append((stacked.take(stack, i), entry))
    return results


def _target_objective(
    architecture: Architecture, frozen: State, training: LabelledImages, recipe: RecipeConfig, plan: Plan
) -> Objective:
    """The target phase, on cached stem activations where they pay and fit."""
    variants = kept_variants(recipe)
    needed = stacked.size(frozen) * len(training) * variants * 4 * math.prod(architecture.activation_shape)
    if needed > _cache_bytes(training.images.device):
        variants = 0
    return target_objective(architecture, frozen, training, variants, plan.of("target"))


def kept_variants(recipe: RecipeConfig) -> int:
    """Return of how many variants of an image, itself and its mirror image, stem activations are worth being kept."""
    variants = 2 if recipe.horizontal_flip else 1
    return 0 if recipe.shift or recipe.target.fewest_epochs <= variants else variants


def _cache_bytes(device: torch.device) -> int:
    """Return the bytes that stem activations may take: on a GPU, half of what is free there."""
    return free_memory(device) // 2 if device.type == "cuda" else CACHE_BYTES


def descend(
    parameters: Parameters,
    objective: Objective,
    data: LabelledImages,
    draw: Callable[[int], Draw],
    phases: list[PhaseConfig],
    after_epoch: Callable[[int], None] = lambda epoch: None,
    recorded: bool = False,
) -> int:
    """Train `parameters` for one phase, each member on its own batches of what `draw` gives for an epoch.

    With `recorded`, a step of the device is a CUDA graph. Returns the epochs begun.
    """
    phase = phases[0]
    steps = steps_of(phase, len(data))
    optimizer = Optimizer(parameters.theta, phases, list(learning_rates(phase.schedule, steps)))

    def step(rows: Tensor, flips: Tensor, shifts: Tensor, scales: Tensor) -> tuple[()]:
        optimizer.step(objective.gradient(parameters, Draw(rows, flips, shifts)), scales)
        return ()

    recorder = Recorder(parameters.theta.device) if recorded and can_record(parameters.theta.device) else None
    done = epoch = 0
    while done < steps:
        epoch += 1
        drawn = draw(epoch)
        for start in range(0, len(data), phase.batch_size)[: steps - done]:
            batch = drawn.batch(start, phase.batch_size)
            inputs = (batch.rows, batch.flips, batch.shifts, optimizer.scales[done])
            if recorder is None:
                step(*inputs)
            else:
                recorder(batch.rows.shape, step, *inputs)
            done += 1
        after_epoch(epoch)
    return epoch
