"""The optimiser of a translator's training, and its learning rate at each step."""

from __future__ import annotations

import math

import torch

from kt_ray.config import TrainingConfig

PROBED = ("projector.probes", "refiner.probes", "refiner.gauss_newton.")
UNDECAYED = (*PROBED, "refiner.log_rates")


def learning_rate(settings: TrainingConfig, step: int, steps: int) -> float:
    """The learning rate of `step` (from 0) of `steps`: linear warm-up, then constant or cosine to zero."""
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def build_optimizer(settings: TrainingConfig, translator: torch.nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW. Refinement's rates are logarithms and its probes images: neither decays towards 0.

    Each group of parameters has a `factor` of the learning rate.
    """
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for name, parameter in translator.named_parameters():
        factor = settings.probe_rate if name.startswith(PROBED) else 1.0
        groups.setdefault((not name.startswith(UNDECAYED), factor), []).append(parameter)
    return kind(
        [
            {"params": parameters, "weight_decay": decays * settings.weight_decay, "factor": factor}
            for (decays, factor), parameters in groups.items()
        ],
        lr=settings.learning_rate,
    )
