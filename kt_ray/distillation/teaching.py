"""A frozen teacher's answers to a batch: computed as training goes, or kept for every view of every image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kt_ray.config import FitConfig
from kt_ray.data import LabelledImages, as_float
from kt_ray.distillation.features import run_with_features
from kt_ray.distillation.images import EVALUATION_BATCH, Batch
from kt_ray.distillation.methods import Method, Targets, Term


class LiveTeaching:
    """The targets of every term of `method` from `teacher`, which must be frozen and in evaluation mode."""

    def __init__(self, teacher: nn.Module, method: Method) -> None:
        self.teacher, self.method = teacher, method

    @torch.no_grad()
    def __call__(self, batch: Batch) -> dict[str, Targets]:
        return self.method.targets(run_with_features(self.teacher, batch.images, self.method.teacher_layers))


class KeptTeaching:
    """Targets looked up: by term, tensors [views, N, …] of the N training images as they are and, flipped, view 1."""

    def __init__(self, kept: Mapping[str, Targets]) -> None:
        self.kept = kept

    def __call__(self, batch: Batch) -> dict[str, Targets]:
        view, row = batch.flipped.long(), batch.indices
        return {name: tuple(tensor[view, row] for tensor in tensors) for name, tensors in self.kept.items()}


def views(config: FitConfig) -> int:
    """In how many ways training shows an image; 0: too many to keep answers to each."""
    if config.crop:
        return 0
    return 2 if config.flip else 1


def bytes_kept(teacher: nn.Module, method: Method, images: LabelledImages, config: FitConfig) -> int:
    """Return the bytes that keeping all answers would take."""
    one = as_float(images.images[:1]).to(next(teacher.parameters()).device)
    with torch.no_grad():
        targets = method.targets(run_with_features(teacher, one, method.teacher_layers))
    size = sum(tensor.numel() * tensor.element_size() for tensors in targets.values() for tensor in tensors)
    return size * len(images) * views(config)


@torch.no_grad()
def answers(
    teacher: nn.Module, term: Term, layers: tuple[str, ...], images: LabelledImages, config: FitConfig
) -> Targets:
    """The targets of `term` for every view of every image, each [views, N, …]."""
    device = next(teacher.parameters()).device
    seen: list[Targets] = []
    for view in range(views(config)):
        for batch, _ in images.batches(EVALUATION_BATCH):
            batch = batch.to(device)
            seen.append(term.targets(run_with_features(teacher, batch.flip(-1) if view else batch, layers)))
    joined = (torch.cat(tensors) for tensors in zip(*seen, strict=True))
    return tuple(tensor.view(views(config), len(images), *tensor.shape[1:]) for tensor in joined)


def as_state(targets: Targets) -> dict[str, Tensor]:
    """Targets named by their number, for a file."""
    return {str(number): tensor for number, tensor in enumerate(targets)}


def from_state(state: Mapping[str, Tensor], device: str) -> Targets:
    """The inverse of `as_state`."""
    return tuple(state[str(number)].to(device) for number in range(len(state)))
