"""Losses of a translator: on parameters, and on what the translated block computes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kt_ray.config import LossConfig
from kt_ray.networks import Architecture, State, stacked


def weight_mse(translated: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """Mean over the tensors of their MSE (the paper's loss), per member: [B]."""
    return torch.stack([(translated[name] - value).square().flatten(1).mean(1) for name, value in target.items()]).mean(
        0
    )


def block_output(translated: Tensor, source: Tensor) -> Tensor:
    """Error of block outputs [B, N, C, H, W] at the positions the head reads, over the source's variance, per member.

    The head's first layer has stride 2, so only every second row and column of a block's output matters.
    """
    translated, source = translated[..., ::2, ::2], source[..., ::2, ::2]
    error = (translated - source).square().flatten(1).mean(1)
    return error / source.flatten(1).var(1).clamp_min(1e-6)


class TranslationLoss:
    """The weighted sum of the terms of a LossConfig."""

    def __init__(self, config: LossConfig, architecture: Architecture) -> None:
        self.config = config
        with torch.device("meta"):  # only their structure is used
            self.stem, self.source = architecture.stem(), architecture.source_block()
            self.target = architecture.target_block()

    @property
    def needs_images(self) -> bool:
        """Whether a term looks at activations."""
        return self.config.block_output > 0

    @property
    def needs_targets(self) -> bool:
        """Whether every term looks at the trained target."""
        return not self.needs_images

    def __call__(self, translated: State, members: State, target: State, images: Tensor | None) -> Tensor:
        """Scalar loss of `translated` blocks for `members` (`stem.…`, `source.…`), mean over those with the term.

        `target` is what the weights are compared with; `images` are floats [N, C, H, W] shared by all members.
        """
        total = next(iter(translated.values())).new_zeros(())
        if self.config.weight_mse:
            known = ~torch.stack([value.flatten(1).isnan().any(1) for value in target.values()]).any(0)
            error = weight_mse(_rows(translated, known), _rows(target, known))
            total = total + self.config.weight_mse * error.sum() / known.sum().clamp_min(1)
        if self.config.block_output and images is not None:
            with torch.no_grad():
                activations = stacked.forward(self.stem, stacked.part(members, "stem"), images, shared=True)
                wanted = stacked.forward(self.source, stacked.part(members, "source"), activations)
            given = stacked.forward(self.target, translated, activations)
            total = total + self.config.block_output * block_output(given, wanted).mean()
        return total


def _rows(state: Mapping[str, Tensor], rows: Tensor) -> State:
    return {name: value[rows] for name, value in state.items()}
