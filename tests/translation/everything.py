"""Every loss term and augmentation at once, in miniature."""

from __future__ import annotations

from typing import Any

ALL_LOSSES: dict[str, Any] = {
    **dict.fromkeys(("weight_mse", "normalised_mse", "aligned_mse"), 1),
    **dict.fromkeys(("block_output", "head_input", "kl", "cross_entropy"), 1),
    "images": 8,
}
ALL_AUGMENTATIONS: dict[str, Any] = {
    "mask": {"probability": 0.1, "sides": "both"},
    "kernel_mask": {"probability": 0.1, "sides": "both"},
    "noise": {"std": 0.1, "sides": "both", "relative": True},
    "channel_permutation": True,
    "hidden_permutation": True,
    "rescale": 0.1,
    "swap_units": 0.2,
    "mixup": 0.3,
    "flips": True,
    "transposes": True,
}
