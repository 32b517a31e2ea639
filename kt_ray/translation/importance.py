"""The order of a block's hidden units by their contribution to its output."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kt_ray.networks import Architecture
from kt_ray.translation.units import BatchNorm, layouts, read, rectified_moments


def importance(source: Mapping[str, Tensor], architecture: Architecture, batch_norm: BatchNorm) -> Tensor:
    """Return the contribution of each hidden unit to the output, [B, H].

    With BN folded, it is the second moment of the rectified unit, of which BN gives mean β and deviation |γ|, times the
    squared norm of the outgoing weights. Without BN, the first factor is the squared norm of the incoming weights.
    """
    layout = layouts(architecture)[0]
    edges = read(source, architecture, batch_norm).edges
    ends = torch.split(edges, [len(layout.incoming), len(layout.outgoing)], dim=3)
    incoming, outgoing = (part.square().flatten(2).sum(-1) for part in ends)
    norm = layout.incoming[0].norm
    if batch_norm == "dropped" or norm is None:
        return incoming * outgoing
    return rectified_moments(source[f"{norm}.bias"], source[f"{norm}.weight"].abs())[1] * outgoing


def importance_order(source: Mapping[str, Tensor], architecture: Architecture, batch_norm: BatchNorm) -> Tensor:
    """Return the indices of the hidden units, most important first, int64 [B, H]."""
    return importance(source, architecture, batch_norm).argsort(dim=1, descending=True, stable=True)


def first(order: Tensor, chosen: Tensor) -> Tensor:
    """Return `order`, int64 [B, H], with the units `chosen` [B, K] moved to its front."""
    is_chosen = (order[..., None] == chosen[:, None]).any(-1)
    places = is_chosen.byte().argsort(dim=1, stable=True)[:, : order.shape[1] - chosen.shape[1]]
    return torch.cat([chosen, order.gather(1, places)], dim=1)
