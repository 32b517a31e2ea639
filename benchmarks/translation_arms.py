"""The arms of `benchmarks/translation.py`: settings of a trial as dotted paths, each arm built on the one before."""

from __future__ import annotations

from typing import Any

from kt_ray.config import TrialConfig, set_path, validate

Settings = dict[str, Any]
UNTRAINED = "untrained"  # a key of settings: nothing is trained, and the family writes nothing over the pruned block
TIMES = "times"  # a key of settings: so many times the steps that other arms are trained for
FAITHFUL: Settings = {
    "translator.family": "mixer",
    "translator.batch_norm": "dropped",
    "translator.output": "direct",
    "training.optimizer": "adam",
    "augmentation.snapshots": False,
}
MASK_AND_NOISE: Settings = {
    "augmentation.mask": {"probability": 0.1, "sides": "both"},
    "augmentation.noise": {"std": 0.01, "sides": "both"},
}
REFINEMENT = {"steps": 384, "probes": 24, "probe_sets": 16, "width": 8, "trained": False}
MATCHED = REFINEMENT | {"images": "mixture", "predictions": 0.5}
FEW_STEPS = 24
# Each is added to all before it, beginning at the faithful arm.
INGREDIENTS: dict[str, Settings] = {
    "+ BN folded": {"translator.batch_norm": "folded"},
    "+ aligned loss": {"loss.weight_mse": 0.0, "loss.aligned_mse": 1.0},
    "+ residual head": {"translator.output": "residual", "training.clip_norm": 1.0},
    "+ functional loss": {"loss.aligned_mse": 0.0, "loss.head_input": 0.3, "loss.images": 16},
    "+ logit loss": {"loss.kl": 1.0},
    "+ permutations": {"augmentation.channel_permutation": True, "augmentation.hidden_permutation": True},
    "axial transformer": {
        "translator.family": "axial_transformer",
        "augmentation.channel_permutation": False,
        "augmentation.hidden_permutation": False,
    },
    "+ BN statistics": {"translator.statistics": True},
    "+ stem and head as context": {"translator.context": "network"},
    "+ briefly trained sources": {"augmentation.snapshots": True},
    "+ varied and swapped units": {"augmentation.vary": 0.05, "augmentation.swap_units": 0.1},
    "+ refinement on strokes": {"translator.canonical": True, "translator.refinement": REFINEMENT},
    "+ refinement on a mixture": {"translator.refinement": REFINEMENT | {"images": "mixture"}},
    "+ matched predictions": {"translator.refinement": MATCHED},
    "+ three starts": {"translator.refinement": MATCHED | {"starts": 3}},
}
FAMILIES = ("mlp", "neuron_transformer", "graph")
BEFORE_FAMILIES = "+ permutations"


def arms(mixer: str) -> dict[str, Settings]:
    """Every arm by name; `mixer` is the mixer's preset."""
    named: dict[str, Settings] = {"faithful": FAITHFUL, "faithful, mask and noise": FAITHFUL | MASK_AND_NOISE}
    settings = dict(FAITHFUL)
    for name, added in INGREDIENTS.items():
        settings = settings | added
        named[name] = settings
    for family in FAMILIES:
        named[f"{family} in place of the axial transformer"] = named[BEFORE_FAMILIES] | {"translator.family": family}
    few = {"translator.refinement": REFINEMENT | {"images": "mixture", "steps": FEW_STEPS}}
    named[f"{FEW_STEPS} steps on a mixture, learned start"] = named["+ refinement on a mixture"] | few
    named[f"{FEW_STEPS} steps on a mixture alone"] = named["+ refinement on a mixture"] | few | {UNTRAINED: True}
    learned = MATCHED | {"steps": FEW_STEPS, "trained": True, "width": 16, "probe_sets": 8}
    named[f"{FEW_STEPS} learned steps on a mixture"] = named["+ matched predictions"] | {
        "translator.refinement": learned
    }
    named["eight times the steps"] = named["+ varied and swapped units"] | {TIMES: 8}
    for name in ("refinement on strokes", "refinement on a mixture", "matched predictions", "three starts"):
        named[f"{name} alone"] = named[f"+ {name}"] | {UNTRAINED: True}
    named["faithful, the paper's mixer"] = FAITHFUL | {"translator.mixer.size": "paper"}
    return {name: {"translator.mixer.size": mixer} | settings for name, settings in named.items()}


def trial(settings: Settings, seed: int, steps: int, batch: int, reports: int) -> TrialConfig:
    """The trial of an arm."""
    training = {"epochs": reports, "steps_per_epoch": max(1, steps // reports), "batch_size": batch}
    content: dict[str, Any] = {"seed": seed, "training": training | {"ema": 0.98, "warmup": 0.03}}
    for path, value in settings.items():
        if path not in (UNTRAINED, TIMES):
            set_path(content, path, value)
    return validate(TrialConfig, content)
