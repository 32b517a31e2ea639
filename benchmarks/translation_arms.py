"""The arms of `benchmarks/translation.py`: settings of a trial as dotted paths, each arm built on another.

Every arm, the faithful one too, is trained with averaged weights (EMA) and a short warm-up, which the paper has not.
"""

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
REFINEMENT = {"steps": 384, "probes": 24, "probe_sets": 16, "width": 8, "trained": False}
MIXTURE = REFINEMENT | {"images": "mixture"}
MATCHED = MIXTURE | {"predictions": 0.5}
FEW_STEPS = 24
LEARNED = {"steps": FEW_STEPS, "trained": True, "width": 16, "probe_sets": 8}
# Each arm: the one it is built on, and what it sets.
ARMS: dict[str, tuple[str | None, Settings]] = {"faithful": (None, FAITHFUL)}


def _chain(before: str, arms: dict[str, Settings]) -> None:
    """Each of `arms` is built on the one before it."""
    for name, settings in arms.items():
        ARMS[name] = (before, settings)
        before = name


def _apart(before: str, arms: dict[str, Settings]) -> None:
    """Each of `arms` is built on `before`."""
    ARMS.update({name: (before, settings) for name, settings in arms.items()})


_apart(
    "faithful",
    {
        "faithful, mask and noise": {
            "augmentation.mask": {"probability": 0.1, "sides": "both"},
            "augmentation.noise": {"std": 0.01, "sides": "both"},
        },
        "faithful, the paper's mixer": {"translator.mixer.size": "paper"},
    },
)
_chain(
    "faithful",
    {
        "+ BN folded": {"translator.batch_norm": "folded"},
        "+ aligned loss": {"loss.weight_mse": 0.0, "loss.aligned_mse": 1.0},
        "+ residual head": {"translator.output": "residual", "training.clip_norm": 1.0},
        "+ functional loss": {"loss.aligned_mse": 0.0, "loss.head_input": 0.3, "loss.images": 16},
        "+ logit loss": {"loss.kl": 1.0},
        "+ permutations": {"augmentation.channel_permutation": True, "augmentation.hidden_permutation": True},
        "axial transformer": {
            "translator.family": "axial_transformer",
            "augmentation.channel_permutation": False,  # the family has both built in
            "augmentation.hidden_permutation": False,
        },
        "+ BN statistics": {"translator.statistics": True},
        "+ stem and head as context": {"translator.context": "network"},
        "+ briefly trained sources": {"augmentation.snapshots": True},
        "+ varied and swapped units": {"augmentation.vary": 0.05, "augmentation.swap_units": 0.1},
        "+ refinement on strokes": {"translator.canonical": True, "translator.refinement": REFINEMENT},
        "+ refinement on a mixture": {"translator.refinement": MIXTURE},
        "+ matched predictions": {"translator.refinement": MATCHED},
        "+ three starts": {"translator.refinement": MATCHED | {"starts": 3}},
    },
)
_apart(
    "+ permutations",
    {
        f"{family} in place of the axial transformer": {"translator.family": family}
        for family in ("mlp", "neuron_transformer", "graph")
    },
)
_apart(
    "+ briefly trained sources",
    {
        "with varied units": {"augmentation.vary": 0.05},
        "with swapped units": {"augmentation.swap_units": 0.1},
        "with masked entries": {"augmentation.mask": {"probability": 0.1, "sides": "source"}},
        "with masked kernels": {"augmentation.kernel_mask": {"probability": 0.1, "sides": "source"}},
        "with relative noise": {"augmentation.noise": {"std": 0.1, "sides": "source", "relative": True}},
        "with rescaled units": {"augmentation.rescale": 0.3},
        "with permuted channels and units": {
            "augmentation.channel_permutation": True,
            "augmentation.hidden_permutation": True,
        },
        "with flips and transposes": {"augmentation.flips": True, "augmentation.transposes": True},
        "with MixUp": {"augmentation.mixup": 0.3},
        "with the merged block as base": {"translator.base": "merged"},
        "with canonical form": {"translator.canonical": True},
        "with weights first": {"loss.aligned_mse": 1.0, "loss.structure_until": 0.5},
    },
)
_apart("+ varied and swapped units", {"eight times the steps": {TIMES: 8}})
_apart(
    "+ refinement on a mixture",
    {
        f"{FEW_STEPS} steps on a mixture, learned start": {"translator.refinement": MIXTURE | {"steps": FEW_STEPS}},
        f"{FEW_STEPS} steps on a mixture alone": {
            "translator.refinement": MIXTURE | {"steps": FEW_STEPS},
            UNTRAINED: True,
        },
    },
)
_apart(
    "+ matched predictions",
    {f"{FEW_STEPS} learned steps on a mixture": {"translator.refinement": MATCHED | LEARNED}},
)
for _name in ("refinement on strokes", "refinement on a mixture", "matched predictions", "three starts"):
    ARMS[f"{_name} alone"] = (f"+ {_name}", {UNTRAINED: True})


def settings_of(arm: str) -> Settings:
    """All settings of an arm."""
    before, settings = ARMS[arm]
    return (settings_of(before) if before else {}) | settings


def added(arm: str) -> str:
    """What an arm sets that the one it is built on does not, in words."""
    before, settings = ARMS[arm]
    present = settings_of(before) if before else {}
    words = []
    for path, value in settings.items():
        if isinstance(value, dict):
            old = present.get(path, {})
            value = {name: entry for name, entry in value.items() if old.get(name) != entry}
        words.append(f"{path.split('.', 1)[-1]} {value}".replace("'", ""))
    return f"{before or 'default'}: {', '.join(words)}"


def trial(settings: Settings, seed: int, steps: int, batch: int, reports: int, mixer: str) -> TrialConfig:
    """The trial of an arm; `mixer` is the size of mixers whose arm does not say."""
    training = {"epochs": reports, "steps_per_epoch": max(1, steps // reports), "batch_size": batch}
    content: dict[str, Any] = {"seed": seed, "training": training | {"ema": 0.98, "warmup": 0.03}}
    for path, value in ({"translator.mixer.size": mixer} | settings).items():
        if path not in (UNTRAINED, TIMES):
            set_path(content, path, value)
    return validate(TrialConfig, content)
