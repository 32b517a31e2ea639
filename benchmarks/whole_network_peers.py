"""What people use today to narrow residual blocks, at the same hidden widths: the peers of `whole_networks.py`."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kt_ray.data import LabelledImages, as_float
from kt_ray.translation.narrowing import narrowed

FINE_TUNING_STEPS, BATCH, LEARNING_RATE = 100, 128, 0.02


def magnitude(network: nn.Module, share: float) -> nn.Module:
    """Keep the units whose kernels are largest, incoming times outgoing; the rest is as it was (arXiv 1608.08710)."""
    return _without_data(network, share, lambda weights, biases, kept: _nothing(weights, kept))


def neuron_merging(network: nn.Module, share: float) -> nn.Module:
    """Each pruned unit's outgoing kernels go to the kept unit of the most similar kernel, scaled (arXiv 2010.13160)."""

    def merged(weights: Tensor, biases: Tensor, kept: Tensor) -> Tensor:
        shares = _nothing(weights, kept)
        whole = weights.flatten(1)
        norms = whole.norm(dim=1).clamp_min(1e-12)
        distance = 1 - (whole / norms[:, None]) @ (whole[kept] / norms[kept, None]).T
        level = biases / norms
        distance = 0.85 * distance + 0.15 * (level[:, None] - level[kept]).abs()
        nearest = distance.argmin(1)
        for unit in _others(weights, kept):
            shares[unit, nearest[unit]] = norms[unit] / norms[kept[nearest[unit]]]
        return shares

    return _without_data(network, share, merged)


def restoration(network: nn.Module, share: float, ridge: float = 0.05) -> nn.Module:
    """Each pruned unit is a combination of kept ones, from kernels and BN alone, as in LBYL (arXiv 2502.08474)."""

    def combined(weights: Tensor, biases: Tensor, kept: Tensor) -> Tensor:
        shares = _nothing(weights, kept)
        whole = torch.cat([weights.flatten(1), biases[:, None]], dim=1)
        gram = whole[kept] @ whole[kept].T
        gram = gram + ridge * gram.diagonal().mean() * torch.eye(len(kept))
        others = _others(weights, kept)
        shares[others] = torch.linalg.solve(gram, whole[kept] @ whole[others].T).T
        return shares

    return _without_data(network, share, combined)


def torch_pruning(network: nn.Module, share: float, image_shape: tuple[int, ...]) -> nn.Module:
    """Prune by the package Torch-Pruning (arXiv 2301.12900) with its group magnitudes."""
    import torch_pruning as tp

    small = copy.deepcopy(network).eval()
    ratios, ignored = {}, []
    wanted, sites = narrowed(network, share)
    firsts = {f"{site.path}.conv1": wanted.get_submodule(f"{site.path}.conv1").out_channels for site in sites}
    for name, module in small.named_modules():
        if name in firsts:
            ratios[module] = 1 - firsts[name] / module.out_channels
        elif isinstance(module, nn.Conv2d | nn.Linear):
            ignored.append(module)
    pruner = tp.pruner.BasePruner(
        small,
        torch.zeros(1, *image_shape),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.0,
        pruning_ratio_dict=ratios,
        ignored_layers=ignored,
    )
    pruner.step()
    widths = {name: small.get_submodule(name).out_channels for name in firsts}
    if widths != firsts:
        raise RuntimeError(f"Torch-Pruning left {widths}, wanted {firsts}")
    return small


def fine_tuned(network: nn.Module, images: LabelledImages, seed: int = 0) -> nn.Module:
    """Train all of a copy of `network` by SGD with labels."""
    small = copy.deepcopy(network).train().to(memory_format=torch.channels_last)
    for parameter in small.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(small.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, FINE_TUNING_STEPS, pct_start=0.1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    for rows in order[: FINE_TUNING_STEPS * BATCH].split(BATCH):
        optimizer.zero_grad()
        batch = as_float(images.images[rows]).contiguous(memory_format=torch.channels_last)
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(small(batch), images.labels[rows])
        loss.backward()
        optimizer.step()
        schedule.step()
    return small.eval()


def _without_data(network: nn.Module, share: float, shares: Callable[[Tensor, Tensor, Tensor], Tensor]) -> nn.Module:
    """Narrow each block: the units of the largest kernels kept, outgoing kernels of the others shared out [H, kept]."""
    small, sites = narrowed(network, share)
    for site in sites:
        large, block = network.get_submodule(site.path), small.get_submodule(site.path)
        (weights, biases), (outgoing, out_biases) = (layer.folded(large.state_dict()) for layer in site.source.layers())
        size = weights.flatten(1).norm(dim=1) * outgoing.transpose(0, 1).flatten(1).norm(dim=1)
        kept = size.topk(block.conv1.out_channels).indices.sort().values
        with torch.no_grad():
            block.conv1.weight.copy_(weights[kept])
            block.conv1.bias.copy_(biases[kept])
            block.conv2.weight.copy_(torch.einsum("ohxy,hk->okxy", outgoing, shares(weights, biases, kept)))
            block.conv2.bias.copy_(out_biases)
    return small.eval()


def _nothing(weights: Tensor, kept: Tensor) -> Tensor:
    """Shares with which each kept unit gets its own outgoing kernels, and the others are lost."""
    shares = torch.zeros(len(weights), len(kept))
    shares[kept, torch.arange(len(kept))] = 1
    return shares


def _others(weights: Tensor, kept: Tensor) -> Tensor:
    out = torch.ones(len(weights), dtype=torch.bool)
    out[kept] = False
    return out.nonzero()[:, 0]
