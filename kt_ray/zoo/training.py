"""Training many members at once: plain PyTorch on tensors, no Ray, no DataLoader.

A member's initialisation and data order come from its own generators, so its numbers do not depend, but for
rounding, on the members trained beside it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import pyarrow as pa
import torch
from torch import Tensor

from kt_ray.config import PhaseConfig, RecipeConfig
from kt_ray.data import Dataset, LabelledImages, as_float
from kt_ray.networks import Architecture, State, stacked
from kt_ray.zoo.members import Member
from kt_ray.zoo.stacking import Apply, Implementation, fresh, many

INDEX = pa.schema(
    [
        ("id", pa.string()),
        ("seed", pa.int64()),
        ("split", pa.string()),
        ("epoch", pa.int32()),
        ("has_target", pa.bool_()),
        ("source_accuracy", pa.float64()),
        ("target_accuracy", pa.float64()),
    ]
)
BUFFERS = ("running_mean", "running_var")
CACHE_BYTES = 1 << 30  # stem activations kept for the target phase; more images than that are computed as needed


def seed_of(member: Member, purpose: str) -> int:
    """A seed for one `purpose` ("source", "target order", …) of a member."""
    digest = hashlib.sha256(f"{member.seed}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def train_members(
    members: Sequence[Member],
    recipe: RecipeConfig,
    architecture: Architecture,
    dataset: Dataset,
    device: str = "cpu",
    implementation: Implementation = "grouped",
) -> tuple[State, pa.Table]:
    """Train `members` at once: source networks, then their targets between the frozen stem and head.

    Returns a stack `stem.…`, `source.…`, `target.…`, `head.…` on the CPU, one row a member and snapshot, and
    its index (the columns of `INDEX`); the target of a snapshot is NaN. Accuracies are on selection images.
    """
    training, selection = dataset.train.to(device), dataset.selection.to(device)
    network = fresh(architecture.source_network, [seed_of(member, "source") for member in members])
    network = {name: value.to(device) for name, value in network.items()}
    snapshots: dict[int, State] = {}

    def keep(epoch: int) -> None:
        if epoch in recipe.snapshots:
            snapshots[epoch] = {name: value.clone() for name, value in network.items()}

    order = [Order(seed_of(member, "source order"), len(training), recipe.horizontal_flip) for member in members]
    apply = many(architecture.source_network(), len(members), implementation)
    _descend(network, apply, lambda rows, flips: _images(training, rows, flips), training, order, recipe.source, keep)

    target = fresh(architecture.target_block, [seed_of(member, "target") for member in members])
    target = {name: value.to(device) for name, value in target.items()}
    frozen = {name: value for name, value in network.items() if not name.startswith("block.")}
    order = [Order(seed_of(member, "target order"), len(training), recipe.horizontal_flip) for member in members]
    head = architecture.head()
    block = many(architecture.target_block(), len(members), implementation)

    def transplanted(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return stacked.forward(head, stacked.part(frozen, "head"), block(state, x))

    activations = _stem_activations(architecture, stacked.part(frozen, "stem"), training, recipe.horizontal_flip)
    _descend(target, transplanted, activations, training, order, recipe.target)

    finished = {**snapshots, recipe.source.epochs: network}
    module = architecture.source_network()
    accuracies = {epoch: accuracy(module, state, selection) for epoch, state in finished.items()}
    full = frozen | {f"block.{name}": value for name, value in target.items()}
    target_accuracy = accuracy(architecture.target_network(), full, selection)
    states: list[State] = []
    rows = []
    for i, member in enumerate(members):
        for epoch, state in finished.items():
            last = state is network
            row = {name.replace("block.", "source."): value[i].cpu() for name, value in state.items()}
            row |= {
                f"target.{name}": value[i].cpu() if last else torch.full_like(value[i].cpu(), math.nan)
                for name, value in target.items()
            }
            states.append(row)
            rows.append(
                {
                    "id": member.id, "seed": member.seed, "split": member.split, "epoch": epoch, "has_target": last,
                    "source_accuracy": float(accuracies[epoch][i]),
                    "target_accuracy": float(target_accuracy[i]) if last else math.nan,
                }
            )  # fmt: skip
    return stacked.stack(states), pa.Table.from_pylist(rows, schema=INDEX)


class Order:
    """The data order of one member: a permutation and a flip for each image, new every epoch."""

    def __init__(self, seed: int, images: int, flip: bool) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.images = images
        self.flip = flip

    def epoch(self) -> tuple[Tensor, Tensor]:
        """Rows int64 [images], flips bool [images]."""
        rows = torch.randperm(self.images, generator=self.generator)
        flips = torch.rand(self.images, generator=self.generator) < 0.5
        return rows, flips & self.flip


Inputs = Callable[[Tensor, Tensor], Tensor]


def _images(data: LabelledImages, rows: Tensor, flips: Tensor) -> Tensor:
    """Float images [M, N, C, H, W] of `rows` [M, N], mirrored where `flips`."""
    images = as_float(data.images[rows])
    return torch.where(flips[..., None, None, None], images.flip(-1), images)


def _stem_activations(architecture: Architecture, stem: State, data: LabelledImages, flip: bool) -> Inputs:
    """The frozen stem's outputs [M, N, channels, H, W] of `rows` [M, N]; computed once for all images if they fit."""
    module = architecture.stem()
    bytes_needed = stacked.size(stem) * len(data) * math.prod(architecture.activation_shape) * 4 * (2 if flip else 1)
    if bytes_needed > CACHE_BYTES:
        return lambda rows, flips: stacked.forward(module, stem, _images(data, rows, flips))
    variants = [data.images, data.images.flip(-1)] if flip else [data.images]
    with torch.no_grad():
        cached = torch.cat(
            [
                stacked.forward(module, stem, as_float(chunk), shared=True)
                for images in variants
                for chunk in torch.split(images, 500)
            ],
            dim=1,
        )
    member = torch.arange(len(cached), device=cached.device)[:, None]
    return lambda rows, flips: cached[member, rows + len(data) * flips]


def _descend(
    state: State,
    apply: Apply,
    inputs: Inputs,
    data: LabelledImages,
    orders: Sequence[Order],
    phase: PhaseConfig,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Minimise cross-entropy over `state` [M, …] in place, each member on its own batches, for one phase."""
    weights = [value.requires_grad_() for name, value in state.items() if not name.endswith(BUFFERS)]
    steps = phase.epochs * -(-len(data) // phase.batch_size)
    optimizer = _optimizer(weights, phase)
    rates = learning_rates(phase, steps)
    for epoch in range(1, phase.epochs + 1):
        drawn = [order.epoch() for order in orders]
        rows = torch.stack([rows for rows, _ in drawn]).to(data.labels.device)
        flips = torch.stack([flips for _, flips in drawn]).to(data.labels.device)
        for batch in range(0, len(data), phase.batch_size):
            chosen = slice(batch, batch + phase.batch_size)
            with torch.no_grad():
                x = inputs(rows[:, chosen], flips[:, chosen])
            logits = apply(state, x)
            labels = data.labels[rows[:, chosen]]
            losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
            gradients = torch.autograd.grad(losses / labels.shape[1], weights)  # a member's mean loss, summed over them
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.param_groups[0]["lr"] = next(rates)
            optimizer.step()
        with torch.no_grad():
            after_epoch(epoch)
    for weight in weights:
        weight.grad = None
        weight.requires_grad_(False)


def _optimizer(weights: list[Tensor], phase: PhaseConfig) -> torch.optim.Optimizer:
    if phase.optimizer == "sgd":
        return torch.optim.SGD(weights, phase.learning_rate, phase.momentum, weight_decay=phase.weight_decay)
    return torch.optim.AdamW(weights, phase.learning_rate, weight_decay=phase.weight_decay)


def learning_rates(phase: PhaseConfig, steps: int) -> Iterator[float]:
    """The learning rate of each of `steps` steps."""
    for step in range(steps):
        done = step / steps
        if phase.schedule == "constant":
            yield phase.learning_rate
        elif phase.schedule == "cosine":
            yield phase.learning_rate * (1 + math.cos(math.pi * done)) / 2
        else:  # one cycle: up for a fifth of the steps, down to 0 after it
            yield phase.learning_rate * min((step + 1) / steps / 0.2, (1 - done) / 0.8, 1.0)


@torch.no_grad()
def accuracy(module: torch.nn.Module, state: State, images: LabelledImages) -> Tensor:
    """The share of `images` that each stacked network gets right, [M]; NaN where there are no images."""
    hits = torch.zeros(stacked.size(state), dtype=torch.float64)
    for batch, labels in images.batches(500):
        logits = stacked.forward(module, state, batch, shared=True)
        hits += (logits.argmax(-1) == labels).sum(1).cpu()
    return hits / len(images) if len(images) else torch.full_like(hits, math.nan)
