"""Adam's direction for the units of a block, and what a network learns to change of it (arXiv 1606.04474)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kt_ray.config import TranslatorConfig
from kt_ray.networks import Architecture
from kt_ray.translation.families.axial_transformer import RANK_CODE, AxialLayer, EdgeOutput, rank_code
from kt_ray.translation.units import Units, edge_width, feature_widths, target_layout

MOMENTUM, SECOND_MOMENT = 0.8, 0.9
CHANGE = 0.1  # of the layer's output beside Adam's direction, whose entries are about 1


class Change(nn.Module):
    """The learned part of a step: one axial layer for all steps over the tokens of target and source units.

    Tokens [B, K + H, C, width] are carried from step to step. Before training it leaves Adam's direction as it is.
    """

    def __init__(self, config: TranslatorConfig, architecture: Architecture) -> None:
        super().__init__()
        width, layout = config.refinement.width, target_layout(architecture)
        values = layout.kernels * layout.values + len(layout.unit) + len(layout.channel)
        self.source = nn.Linear(edge_width(config, architecture) + sum(feature_widths(config, architecture)), width)
        self.rank = nn.Linear(RANK_CODE, width)
        self.seen = nn.Linear(2 * values + 3 + RANK_CODE, width)
        self.layer = AxialLayer(width, config.refinement.heads, 0.0)
        self.written = EdgeOutput(width, layout, silent=True)

    def begin(self, units: Units, source: Units) -> Tensor:
        """Return the tokens of K target and H source units before the first step."""
        known = self.source(source.tokens())
        count = units.edges.shape[1]
        tokens = self.rank(rank_code(count, known))[:, None].expand(len(known), count, known.shape[2], -1)
        return torch.cat([tokens, known], dim=1)

    def forward(
        self, units: Units, direction: Units, errors: Tensor, time: Tensor, tokens: Tensor
    ) -> tuple[Units, Tensor]:
        """Return `direction` changed, and the next tokens, for `errors` [B, 3] and `time` [RANK_CODE]."""
        count = units.edges.shape[1]
        facts = torch.cat([errors, time.expand(len(errors), -1)], dim=1)
        facts = facts[:, None, None].expand(len(errors), count, tokens.shape[2], -1)
        seen = self.seen(torch.cat([units.tokens(), direction.tokens(), facts], dim=-1))
        tokens = self.layer(torch.cat([tokens[:, :count] + seen, tokens[:, count:]], dim=1))
        added: Units = self.written(tokens[:, :count])
        changed = Units(
            direction.edges - CHANGE * added.edges,
            direction.unit - CHANGE * added.unit,
            direction.channel - CHANGE * added.channel,
        )
        return changed, tokens


def adam(
    gradient: Sequence[Tensor], first: Sequence[Tensor], second: Sequence[Tensor], corrections: Tensor
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return Adam's direction (arXiv 1412.6980) and its next moments; gradients do not pass through the second.

    `corrections` are what the moments lack at this step, one minus a power of each decay.
    """
    first = [torch.lerp(value, old, MOMENTUM) for value, old in zip(gradient, first, strict=True)]
    second = [
        torch.lerp(value.detach().square(), old, SECOND_MOMENT) for value, old in zip(gradient, second, strict=True)
    ]
    of_first, of_second = corrections.unbind()
    direction = [
        (mean / of_first) / ((power / of_second).sqrt() + 1e-6) for mean, power in zip(first, second, strict=True)
    ]
    return direction, first, second
