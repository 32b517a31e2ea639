"""One translator for blocks of several widths, tested on a width it never saw.

Small zoos of mnist5k networks are trained here for every width (channels, source units → target units). Translators
whose parameters depend on no width take turns at the training widths, some steps each, with the same parameters and
optimiser throughout, and are evaluated once on test members and test images of every width.

    python benchmarks/translation_widths.py
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common.results import write

from kt_ray.config import DatasetConfig, MemberCounts, NetworkConfig, PhaseConfig, RecipeConfig, TrialConfig, validate
from kt_ray.data import Dataset, load_dataset
from kt_ray.networks import PaperArchitecture
from kt_ray.translation.evaluation import evaluate
from kt_ray.translation.training import TranslatorTraining
from kt_ray.translation.translator import Translator, build_translator
from kt_ray.zoo.members import Zoo, members_of
from kt_ray.zoo.training.members import train_members

SEEN = ((4, 4, 2), (6, 6, 3), (8, 8, 4))
UNSEEN = ((5, 7, 3), (10, 8, 4))
STEPS = {"steps": 384, "images": "mixture", "trained": False, "predictions": 0.5, "starts": 3, "probe_sets": 16}
TRANSLATORS: dict[str, dict[str, Any]] = {
    "axial transformer": {"family": "axial_transformer", "axial_transformer": {"width": 32, "depth": 2}},
    "graph": {"family": "graph", "graph": {"width": 32, "depth": 2}},
    "axial transformer, then steps": {
        "family": "axial_transformer",
        "axial_transformer": {"width": 32, "depth": 2},
        "canonical": True,
        "refinement": STEPS,
    },
}


def zoo_of(width: tuple[int, int, int], dataset: Dataset, members: int, epochs: int) -> Zoo:
    """A zoo of networks of one width."""
    channels, source, target = width
    architecture = PaperArchitecture(
        "basic_to_simple", NetworkConfig(channels=channels, source_hidden=source, target_hidden=target)
    )
    phase = PhaseConfig(epochs=epochs, learning_rate=0.05, batch_size=64, schedule="one_cycle")
    counts = MemberCounts(train=members, selection=2, test=8)
    recipe = RecipeConfig(source=phase, target=phase, horizontal_flip=False)
    parameters, index = train_members(members_of(0, counts), recipe, architecture, dataset)
    return Zoo(architecture, parameters, index, f"widths {width}", dataset.fingerprint)


def trained(translator: dict[str, Any], zoos: list[Zoo], dataset: Dataset, seed: int, rounds: int) -> Translator:
    """One translator trained on all `zoos` in turn."""
    content = {
        "seed": seed,
        "translator": {"statistics": True, "context": "network", **translator},
        "loss": {"weight_mse": 0, "head_input": 0.3, "kl": 1, "images": 16},
        "augmentation": {"vary": 0.05},
        "training": {"epochs": rounds, "steps_per_epoch": 20, "batch_size": 16, "clip_norm": 1, "learning_rate": 0.002},
    }
    trainings = [TranslatorTraining(validate(TrialConfig, content), zoo, dataset) for zoo in zoos]
    first = trainings[0]
    for training in trainings[1:]:
        for name, parameter in first.model.named_parameters():
            owner, _, leaf = name.rpartition(".")
            setattr(training.model.get_submodule(owner), leaf, parameter)
        training.optimizer = first.optimizer
    for _ in range(rounds):
        for training in trainings:
            print(training.zoo.architecture.network, training.run_epoch(), flush=True)
    return first.model


def main() -> None:
    """Train, evaluate, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=24, help="training members of each width")
    parser.add_argument("--epochs", type=int, default=3, help="of each phase of a member")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset(DatasetConfig())
    zoos = {width: zoo_of(width, dataset, arguments.members, arguments.epochs) for width in (*SEEN, *UNSEEN)}
    lines = [
        "| translator | seed | channels, units → units | seen | mean | worst | pruned | trained target | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    results = []
    ratios: dict[str, list[float]] = {}
    for name, translator in TRANSLATORS.items():
        for seed in arguments.seeds:
            model = trained(translator, [zoos[width] for width in SEEN], dataset, seed, arguments.rounds)
            for width, zoo in zoos.items():
                other = build_translator(model.config, zoo.architecture)
                other.load_state_dict(model.state_dict())
                evaluation = evaluate(other, zoo, dataset)
                rows = {row.name: row for row in evaluation.rows}
                translated, ceiling = rows["translated"], rows["trained target"]
                results.append({"translator": name, "seed": seed, "width": width, "evaluation": evaluation.to_dict()})
                ratios.setdefault(name, [])
                if width in UNSEEN:
                    ratios[name].append(translated.mean / ceiling.mean)
                channels, source, target = width
                lines.append(
                    f"| {name} | {seed} | {channels}, {source} → {target} | {'yes' if width in SEEN else 'no'} "
                    f"| {translated.mean:.4f} | {translated.min:.4f} | {rows['pruned block'].mean:.4f} "
                    f"| {ceiling.mean:.4f} | {translated.mean / ceiling.mean:.3f} |"
                )
    headline = {f"unseen_mean_ratio, {name}": sum(values) / len(values) for name, values in ratios.items()}
    write("translation_widths", headline, {"runs": results}, arguments.seeds, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
