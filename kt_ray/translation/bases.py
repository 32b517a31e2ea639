"""Target blocks straight from the source's units, nothing learned: baselines, and where residual output starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kt_ray.networks import Architecture, State
from kt_ray.translation.importance import importance_order
from kt_ray.translation.units import BatchNorm, Layout, Units, read, target_layout, write

SINKHORN_STEPS = 100
SINKHORN_TEMPERATURE = 0.1

Base = Callable[[Units, Layout, int], Units]  # source units in order of importance, target's layout and hidden units


def pruned_units(units: Units, layout: Layout, hidden: int) -> Units:
    """The first `hidden` of the source's units, which are in order of importance.

    A convolution target keeps kernels (and biases where it has any). A target without kernels sees the kernels'
    sums, the response to a constant image; units it has beyond the source's repeat them, with nothing going out.
    Attention passes its own position on: queries, keys and values are the identity, and its projection the block's
    response with every unit half open.
    """
    batch, available, channels = units.edges.shape[:3]
    if not layout.projects_itself:
        return _attention(units)
    chosen = torch.arange(hidden, device=units.edges.device) % available
    edges = units.edges[:, chosen] if layout.values > 1 else units.edges[:, chosen].sum(-1, keepdim=True)
    only_incoming = 1 - torch.arange(2, device=edges.device)[:, None]
    edges = torch.cat([edges[:, :available], edges[:, available:] * only_incoming], dim=1)
    if units.unit.shape[-1]:
        unit, channel = units.unit[:, chosen], units.channel
    else:
        unit, channel = edges.new_zeros(batch, hidden, 1), edges.new_zeros(batch, channels, 1)
    return Units(edges, unit[..., : len(layout.unit)], channel[..., : len(layout.channel)])


def merged_units(units: Units, layout: Layout, hidden: int) -> Units:
    """The pruned block, each removed unit folded into the kept one with the most similar incoming kernels.

    Neuron merging (arXiv 2010.13160), BN-aware: a removed unit's outgoing kernels are added to the kept one's,
    times the cosine of their incoming kernels (never negative) and the ratio of their norms; folded kernels carry
    BN's scale.
    """
    kept = pruned_units(units, layout, hidden)
    if not layout.projects_itself or hidden >= units.edges.shape[1]:
        return kept
    incoming = units.edges[:, :, :, 0].flatten(2)
    norms = incoming.norm(dim=2).clamp_min(1e-8)
    cosine = (
        incoming[:, hidden:]
        @ incoming[:, :hidden].transpose(1, 2)
        / (norms[:, hidden:, None] * norms[:, None, :hidden])
    )
    best, nearest = cosine.clamp_min(0).max(2)  # [B, removed]
    scale = best * norms[:, hidden:] / norms[:, :hidden].gather(1, nearest)
    plan = torch.zeros_like(cosine).scatter(2, nearest[..., None], scale[..., None])
    return _with_outgoing(kept, units, plan, hidden)


def transported_units(units: Units, layout: Layout, hidden: int) -> Units:
    """Fusion of the source's units into `hidden` by optimal transport (Intra-Fusion, arXiv 2312.10549).

    An entropic plan carries the importance of all units (here their norms' product) to the kept ones, at the cost
    of the distance of their directions; incoming weights are averaged with the mass that arrives, and outgoing ones
    follow the mass that leaves.
    """
    if not layout.projects_itself or hidden >= units.edges.shape[1]:
        return pruned_units(units, layout, hidden)
    into, out = units.edges[:, :, :, 0].flatten(2), units.edges[:, :, :, 1].flatten(2)
    mass = (into.norm(dim=2) * out.norm(dim=2)).clamp_min(1e-8)
    mass = mass / mass.sum(1, keepdim=True)
    directions = torch.nn.functional.normalize(into, dim=2)
    kernel = torch.exp(-torch.cdist(directions, directions[:, :hidden]).square() / SINKHORN_TEMPERATURE)
    columns = torch.full_like(mass[:, :hidden], 1 / hidden)
    right = torch.ones_like(columns)
    for _ in range(SINKHORN_STEPS):
        left = mass / (kernel @ right[..., None])[..., 0].clamp_min(1e-12)
        right = columns / (kernel.transpose(1, 2) @ left[..., None])[..., 0].clamp_min(1e-12)
    plan = left[..., None] * kernel * right[:, None]  # [B, H, hidden]
    arriving = plan / plan.sum(1, keepdim=True).clamp_min(1e-12)
    leaving = plan / plan.sum(2, keepdim=True).clamp_min(1e-12)
    edges = torch.stack(
        [
            torch.einsum("bhk,bhcv->bkcv", arriving, units.edges[:, :, :, 0]),
            torch.einsum("bhk,bhcv->bkcv", leaving, units.edges[:, :, :, 1]),
        ],
        dim=3,
    )
    fused = Units(edges, torch.einsum("bhk,bhu->bku", arriving, units.unit), units.channel)
    return pruned_units(fused, layout, hidden)


BASES: dict[str, Base] = {"pruned": pruned_units, "merged": merged_units, "transported": transported_units}


def one_shot_block(
    source: Mapping[str, Tensor], architecture: Architecture, batch_norm: BatchNorm = "folded", base: str = "pruned"
) -> State:
    """The target block that `base`, one of `BASES`, makes of each source block of a stack."""
    units = read(source, architecture, batch_norm).take(importance_order(source, architecture, batch_norm))
    layout = target_layout(architecture)
    copied = architecture.layouts()[1].copied_of(source)
    return write(BASES[base](units, layout, layout.hidden), layout) | copied


def _with_outgoing(kept: Units, units: Units, plan: Tensor, hidden: int) -> Units:
    """`kept` with the outgoing kernels of the removed units added by `plan` [B, removed, hidden]."""
    removed = units.edges[:, hidden:, :, 1]
    if kept.edges.shape[-1] == 1:
        removed = removed.sum(-1, keepdim=True)
    added = torch.einsum("brk,brcv->bkcv", plan, removed)
    return Units(torch.stack([kept.edges[:, :, :, 0], kept.edges[:, :, :, 1] + added], dim=3), kept.unit, kept.channel)


def _attention(units: Units) -> Units:
    sums = units.edges.sum(-1)  # [B, H, C, 2]
    batch, _, channels, _ = sums.shape
    response = 0.5 * torch.einsum("bhi,bho->bio", sums[..., 0], sums[..., 1])  # input × output channels
    identity = torch.eye(channels, device=sums.device).expand(batch, -1, -1)
    edges = torch.stack([identity, identity, identity, response], dim=3)[..., None]
    return Units(edges, edges.new_zeros(batch, channels, 0), edges.new_zeros(batch, channels, 0))
