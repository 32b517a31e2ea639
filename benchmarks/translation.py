"""How well blocks are translated: the paper's way, each ingredient added in turn, families, zoo sizes, the best.

Every arm is trained from several seeds on the training members of one zoo, for the same number of steps unless said,
and evaluated once on the test images of the test members. A run of an arm is a file in the work directory: what is
there is not run again, one that was cut off goes on from its last epoch, and `--report` writes the tables of what is
there. So the benchmark runs in parts, on as many machines as share the directory.

    kt-ray zoo build benchmarks/translation.yaml
    python benchmarks/translation.py ZOO WORK --arms faithful best --seeds 0 1 2
    python benchmarks/translation.py ZOO WORK --report
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from distillation_report import write

from kt_ray.config import DatasetConfig, TrialConfig, set_path, validate
from kt_ray.data import Dataset, load_dataset
from kt_ray.evaluation import evaluate
from kt_ray.training import TranslatorTraining
from kt_ray.translators.checkpoint import save_translator
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore

Settings = dict[str, Any]
FAITHFUL: Settings = {
    "translator.family": "mixer",
    "translator.batch_norm": "dropped",
    "translator.output": "direct",
    "training.optimizer": "adam",
}
MASK_AND_NOISE: Settings = {
    "augmentation.mask": {"probability": 0.1, "sides": "both"},
    "augmentation.noise": {"std": 0.01, "sides": "both"},
}
# Each is added to all before it, beginning at the faithful arm.
INGREDIENTS: dict[str, Settings] = {
    "BN folded": {"translator.batch_norm": "folded"},
    "aligned loss": {"loss.weight_mse": 0.0, "loss.aligned_mse": 1.0},
    "residual head": {"translator.output": "residual", "training.clip_norm": 1.0},
    "functional loss": {"loss.aligned_mse": 0.0, "loss.head_input": 0.3, "loss.images": 16},
    "logit loss": {"loss.kl": 1.0},
    "permutations": {"augmentation.channel_permutation": True},
    "axial transformer": {"translator.family": "axial_transformer", "augmentation.channel_permutation": False},
    "BN statistics": {"translator.statistics": True},
    "stem and head as context": {"translator.context": "network"},
    "varied and swapped units": {"augmentation.vary": 0.05, "augmentation.swap_units": 0.1},
    "refinement, untrained": {"translator.refinement.steps": 24, "augmentation.swap_units": 0.0, "untrained": True},
    "refinement (best)": {"untrained": False},
}
FAMILIES = ("mixer", "mlp", "neuron_transformer", "axial_transformer", "graph")
BEFORE_FAMILIES = "permutations"


def arms(mixer: str, refined: Settings) -> dict[str, Settings]:
    """Every arm as dotted paths of a trial. `mixer` is its preset; `refined` are added to the best arm's."""
    named: dict[str, Settings] = {"faithful": dict(FAITHFUL), "faithful + mask and noise": FAITHFUL | MASK_AND_NOISE}
    settings = dict(FAITHFUL)
    for name, added in INGREDIENTS.items():
        settings = settings | added
        named[name] = settings
    for family in FAMILIES:
        named[f"family {family}"] = named[BEFORE_FAMILIES] | {"translator.family": family}
    named["refinement (best)"] = named["refinement (best)"] | refined
    for settings in named.values():
        settings["translator.mixer.size"] = mixer
    return named


def trial(settings: Settings, seed: int, steps: int, batch: int, reports: int) -> TrialConfig:
    """The trial of an arm."""
    content: dict[str, Any] = {
        "seed": seed,
        "training": {"epochs": reports, "steps_per_epoch": max(1, steps // reports), "batch_size": batch, "ema": 0.98,
                     "warmup": 0.03},
    }  # fmt: skip
    for path, value in settings.items():
        if path != "untrained":
            set_path(content, path, value)
    return validate(TrialConfig, content)


def read(uri: str, held_out: str | None, members: int | None) -> tuple[Zoo, Dataset]:
    """The zoo with only its first `members` training members (all if None), and its dataset.

    With `held_out`, selection and test members come from that zoo.
    """
    store = ZooStore(held_out or uri)
    dataset = load_dataset(DatasetConfig(**store.definition()["dataset"]))
    zoo = ZooStore(uri).read()
    if held_out:
        zoo = joined(zoo, "train", [store.read("selection"), store.read("test")])
    if members is not None:
        ids = sorted({row for row, split in zip(*_columns(zoo), strict=True) if split == "train"})[:members]
        kept = [
            number for number, (row, split) in enumerate(zip(*_columns(zoo), strict=True))
            if split != "train" or row in ids
        ]  # fmt: skip
        zoo = zoo.take(torch.tensor(kept))
    return zoo, dataset


def _columns(zoo: Zoo) -> tuple[list[str], list[str]]:
    return zoo.index["id"].to_pylist(), zoo.index["split"].to_pylist()


def joined(zoo: Zoo, split: str, others: list[Zoo]) -> Zoo:
    """The members of one split of `zoo`, and all of the `others`."""
    rows = torch.tensor([number for number, name in enumerate(_columns(zoo)[1]) if name == split])
    zoos = [zoo.take(rows), *others]
    columns = [name for name in zoo.index.column_names if all(name in other.index.column_names for other in others)]
    return Zoo(
        zoo.architecture,
        {name: torch.cat([each.parameters[name] for each in zoos]) for name in zoo.parameters},
        pa.concat_tables([each.index.select(columns) for each in zoos]),
        "+".join(dict.fromkeys(each.fingerprint for each in zoos)),
        zoo.dataset_fingerprint,
    )


def run(
    name: str, settings: Settings, seed: int, zoo: Zoo, dataset: Dataset, work: Path, arguments: argparse.Namespace
) -> None:
    """Train and evaluate one arm from one seed, unless its file is there."""
    label = f"{name}, {len(zoo.where('train'))} members, seed {seed}".replace(" ", "-").replace(",", "")
    file, checkpoint = work / f"{label}.json", work / f"{label}.training.safetensors"
    if file.exists():
        return
    config = trial(settings, seed, arguments.steps, arguments.batch, arguments.reports)
    # Selection while training needs few images: it only shows how an arm goes.
    training = TranslatorTraining(config, zoo, replace(dataset, selection=dataset.selection.take(slice(0, 500))))
    if checkpoint.exists():
        training.load(checkpoint)
    history: list[dict[str, float]] = []
    started = time.process_time()
    while not training.finished and not settings.get("untrained"):
        history.append(training.run_epoch())
        training.save(checkpoint)
        print(name, seed, training.epoch, {key: round(value, 4) for key, value in history[-1].items()}, flush=True)
    evaluation = evaluate(training.translator, zoo, dataset)
    fit = evaluate(
        training.translator, zoo.take(torch.arange(0)) if not len(zoo) else zoo, dataset, "train", "selection"
    )
    ceiling = evaluation.row("trained target")
    translated = evaluation.row("translated")
    result = {
        "arm": name, "seed": seed, "training_members": len(zoo.where("train")),
        "config": config.model_dump(mode="json"),
        "parameters": sum(value.numel() for value in training.model.parameters()),
        "cpu_seconds": time.process_time() - started, "history": history,
        "mean_ratio": translated.mean / ceiling.mean, "min_ratio": translated.min / ceiling.mean,
        "training_members_mean": fit.row("translated").mean, "evaluation": evaluation.to_dict(),
    }  # fmt: skip
    save_translator(
        work / f"{label}.translator.safetensors", training.translator, config.translator, zoo.architecture,
        {key: result[key] for key in ("arm", "seed", "training_members", "mean_ratio", "min_ratio")},
    )  # fmt: skip
    file.write_text(json.dumps(result))
    checkpoint.unlink(missing_ok=True)


def report(work: Path, uri: str, held_out: str | None) -> None:
    """The tables and figures of all that is in the work directory."""
    results = [json.loads(file.read_text()) for file in sorted(work.glob("*.json"))]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["arm"], result["training_members"]), []).append(result)
    lines = ["| arm | training members | seeds | mean accuracy | ± | worst member | mean ratio | min ratio "
             "| on training members | steps × batch | CPU minutes |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    headline: dict[str, float] = {}
    for (name, members), group in groups.items():
        rows = [next(row for row in result["evaluation"]["rows"] if row["name"] == "translated") for result in group]
        means, ratio = [row["mean"] for row in rows], statistics.mean(result["mean_ratio"] for result in group)
        worst, least = min(row["min"] for row in rows), min(result["min_ratio"] for result in group)
        training = group[0]["config"]["training"]
        steps = 0 if "untrained" in name else training["epochs"] * training["steps_per_epoch"]
        lines.append(
            f"| {name} | {members} | {len(group)} | {statistics.mean(means):.4f} "
            f"| {statistics.stdev(means) if len(means) > 1 else float('nan'):.4f} | {worst:.4f} | {ratio:.4f} "
            f"| {least:.4f} | {statistics.mean(result['training_members_mean'] for result in group):.4f} "
            f"| {steps} × {training['batch_size']} "
            f"| {statistics.mean(result['cpu_seconds'] for result in group) / 60:.1f} |"
        )
        if name.startswith("faithful"):
            headline["faithful_mean_ratio"] = max(ratio, headline.get("faithful_mean_ratio", 0.0))
        if ratio > headline.get("best_mean_ratio", 0.0):
            headline |= {"best_mean_ratio": ratio, "best_min_ratio": least}
    evaluation = results[0]["evaluation"]
    rows = [row for row in evaluation["rows"] if row["name"] != "translated"]
    lines += ["", f"Baselines on the same {evaluation['member_count']} {evaluation['members']} members and "
              f"{evaluation['image_count']:,} {evaluation['images']} images:", "",
              "| block | mean | min | max | seconds a member |", "|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {row['name']} | {row['mean']:.4f} | {row['min']:.4f} | {row['max']:.4f} | {row['seconds']:.2g} |"
        for row in rows
    ]
    definition = ZooStore(uri).definition()
    zoos = {"training": {key: definition[key] for key in ("pair", "seed", "network", "recipe", "dataset")}}
    if held_out:
        definition = ZooStore(held_out).definition()
        zoos["held out"] = {key: definition[key] for key in ("pair", "seed", "network", "recipe", "dataset")}
    seeds = sorted({result["seed"] for result in results})
    write("translation", headline, {"zoos": zoos, "runs": results}, seeds, "\n".join(lines))
    print("\n".join(lines))


def main() -> None:
    """Run the arms asked for, or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", help="directory or URI of the zoo")
    parser.add_argument("work", type=Path, help="directory of runs")
    parser.add_argument("--held-out", help="zoo that selection and test members come from, if not the first")
    parser.add_argument("--arms", nargs="*", help="names of arms; all if none is named")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--members", nargs="*", type=int, help="numbers of training members; all if none is given")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--reports", type=int, default=10)
    parser.add_argument("--mixer", default="paper", choices=["paper", "small", "tiny"])
    parser.add_argument("--best", default="{}", help="JSON of dotted paths added to the best arm")
    parser.add_argument("--report", action="store_true", help="only write the tables of what is there")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    every = arms(arguments.mixer, json.loads(arguments.best))
    if not arguments.report:
        for members in arguments.members or [None]:
            zoo, dataset = read(arguments.zoo, arguments.held_out, members)
            for seed in arguments.seeds:
                for name in arguments.arms or list(every):
                    run(name, every[name], seed, zoo, dataset, arguments.work, arguments)
    report(arguments.work, arguments.zoo, arguments.held_out)


if __name__ == "__main__":
    main()
