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
from kt_ray.evaluation import evaluate, translate, transplant_accuracy
from kt_ray.training import TranslatorTraining
from kt_ray.translators.checkpoint import load_translator, save_translator
from kt_ray.translators.pretrained import DIRECTORY
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
    "refinement on strokes": {
        "translator.refinement": {"steps": 384, "probes": 24, "probe_sets": 16, "width": 8},
        "translator.canonical": True,
        "untrained": True,
    },
    "refinement on learned probes": {
        "translator.refinement": {"steps": 24, "probes": 24, "probe_sets": 2, "width": 32},
        "augmentation.swap_units": 0.0,
        "untrained": False,
    },
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
    named["refinement on learned probes"] = named["refinement on learned probes"] | refined
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


def read(uri: str, held_out: list[str], members: int | None, skip: int) -> tuple[Zoo, Dataset]:
    """The zoo with only its first `members` training members (all if None), and its dataset.

    With `held_out`, selection and test members come from those zoos. The first `skip` test members are left out.
    """
    stores = [ZooStore(other) for other in held_out or [uri]]
    dataset = load_dataset(DatasetConfig(**stores[0].definition()["dataset"]))
    zoo = ZooStore(uri).read()
    if held_out:
        zoo = joined([of(zoo, {"train"}), *(of(store.read(), {"selection", "test"}) for store in stores)])
    if skip:
        tests = sorted({row for row, split in zip(*_columns(zoo), strict=True) if split == "test"})[:skip]
        zoo = zoo.take(torch.tensor([n for n, row in enumerate(zoo.index["id"].to_pylist()) if row not in tests]))
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


def of(zoo: Zoo, splits: set[str]) -> Zoo:
    """The members of some splits."""
    return zoo.take(torch.tensor([row for row, split in enumerate(_columns(zoo)[1]) if split in splits]).long())


def joined(zoos: list[Zoo]) -> Zoo:
    """Several zoos as one."""
    columns = [name for name in zoos[0].index.column_names if all(name in zoo.index.column_names for zoo in zoos)]
    return Zoo(
        zoos[0].architecture,
        {name: torch.cat([zoo.parameters[name] for zoo in zoos]) for name in zoos[0].parameters},
        pa.concat_tables([zoo.index.select(columns) for zoo in zoos]),
        "+".join(dict.fromkeys(zoo.fingerprint for zoo in zoos)),
        zoos[0].dataset_fingerprint,
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
    if settings.get("untrained"):
        torch.nn.init.zeros_(training.translator.scale)  # nothing learned: the family is silent, too
    while not training.finished and not settings.get("untrained"):
        history.append(training.run_epoch())
        training.save(checkpoint)
        print(name, seed, training.epoch, {key: round(value, 4) for key, value in history[-1].items()}, flush=True)
    first = not list(work.glob("*.json"))
    evaluation = evaluate(training.translator, zoo, dataset, fit_steps=arguments.fit_steps if first else 0)
    members = zoo.where("train")
    fit = transplant_accuracy(members, translate(training.translator, members), training.dataset.selection)
    ceiling = evaluation.row("trained target")
    translated = evaluation.row("translated")
    result = {
        "arm": name, "seed": seed, "training_members": len(zoo.where("train")),
        "config": config.model_dump(mode="json"),
        "parameters": sum(value.numel() for value in training.model.parameters()),
        "cpu_seconds": time.process_time() - started, "history": history,
        "mean_ratio": translated.mean / ceiling.mean, "min_ratio": translated.min / ceiling.mean,
        "training_members_mean": float(fit.mean()), "evaluation": evaluation.to_dict(),
    }  # fmt: skip
    save_translator(
        work / f"{label}.translator.safetensors", training.translator, config.translator, zoo.architecture,
        {key: result[key] for key in ("arm", "seed", "training_members", "mean_ratio", "min_ratio")},
    )  # fmt: skip
    file.write_text(json.dumps(result))
    checkpoint.unlink(missing_ok=True)


def report(work: Path, uri: str, held_out: list[str]) -> None:
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
        steps = 0 if "on strokes" in name else training["epochs"] * training["steps_per_epoch"]
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
    evaluation = max((result["evaluation"] for result in results), key=lambda each: len(each["rows"]))
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
    for number, other in enumerate(held_out):
        definition = ZooStore(other).definition()
        zoos[f"held out {number}"] = {key: definition[key] for key in ("pair", "seed", "network", "recipe", "dataset")}
    seeds = sorted({result["seed"] for result in results})
    write("translation", headline, {"zoos": zoos, "runs": results}, seeds, "\n".join(lines))
    print("\n".join(lines))


def ship(work: Path, arm: str) -> None:
    """Put the translator of an arm's first run into the package, with a model card made of its results."""
    if arm != "refinement on strokes":
        raise SystemExit(f"the card describes the arm 'refinement on strokes', not {arm!r}; write one for it first")
    file = next(path for path in sorted(work.glob("*.json")) if json.loads(path.read_text())["arm"] == arm)
    result = json.loads(file.read_text())
    loaded = load_translator(file.with_suffix(".translator.safetensors"))
    target = DIRECTORY / f"{loaded.architecture.pair}.safetensors"
    extra = {key: value for key, value in loaded.extra.items() if key != "seed"} | {"license": "Apache-2.0"}
    save_translator(target, loaded.translator, loaded.config, loaded.architecture, extra)
    evaluation, refinement = result["evaluation"], loaded.config.refinement
    rows = "\n".join(
        f"| {row['name']} | {row['mean']:.4f} | {row['min']:.4f} | {row['seconds']:.2g} |" for row in evaluation["rows"]
    )
    target.with_suffix(".md").write_text(
        CARD.format(
            pair=loaded.architecture.pair, arm=arm, rows=rows, members=evaluation["member_count"],
            images=evaluation["image_count"], dataset=evaluation["dataset"], steps=refinement.steps,
            probes=refinement.probes * refinement.probe_sets, mean=result["mean_ratio"], least=result["min_ratio"],
            network=loaded.architecture.network, shape="×".join(map(str, loaded.architecture.image_shape)),
        ),
        encoding="utf-8",
    )  # fmt: skip


CARD = """# Translator {pair}

Writes the small block of `{pair}` for a large one ({network};
images {shape}). The arm "{arm}" of `benchmarks/translation.py`; machine, recipes of the zoos and command stand in
`benchmarks/results/translation.json`.

How it works: {steps} steps of Adam from the pruned block, rates fixed, on {probes} images of random strokes that it
carries (a few curves each, drawn from no data). The strokes are run through the user's own stem, block and head; the
error is that of the head's input and of the logits. Nothing in it was learned from data, and translating needs none,
but it does need the stem and the head around the block, and it runs the network.

On {members} held-out members, {images:,} test images of {dataset}: {mean:.3f} of the trained target's mean accuracy,
worst member {least:.3f} of it.

| block | mean | worst | seconds a member |
|---|---|---|---|
{rows}

Limits: MNIST-like images and this architecture; strokes are a poor stand-in for other images. License: Apache-2.0.
"""


def main() -> None:
    """Run the arms asked for, or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", help="directory or URI of the zoo")
    parser.add_argument("work", type=Path, help="directory of runs")
    parser.add_argument("--held-out", nargs="*", default=[], help="zoos of selection and test members, if others")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first test members (seen in development)")
    parser.add_argument("--test-images", type=int, help="only so many test images; all if not given")
    parser.add_argument("--fit-steps", type=int, default=0, help="steps of the fits to each member in the first run")
    parser.add_argument("--arms", nargs="*", help="names of arms; all if none is named")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--members", nargs="*", type=int, help="numbers of training members; all if none is given")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--reports", type=int, default=10)
    parser.add_argument("--mixer", default="paper", choices=["paper", "small", "tiny"])
    parser.add_argument("--best", default="{}", help="JSON of dotted paths added to the best arm")
    parser.add_argument("--ship", metavar="ARM", help="put this arm's translator and its card into the package")
    parser.add_argument("--report", action="store_true", help="only write the tables of what is there")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    every = arms(arguments.mixer, json.loads(arguments.best))
    if arguments.ship:
        ship(arguments.work, arguments.ship)
        return
    if not arguments.report:
        for members in arguments.members or [None]:
            zoo, dataset = read(arguments.zoo, arguments.held_out, members, arguments.skip)
            dataset = replace(dataset, test=dataset.test.take(slice(arguments.test_images)))
            for seed in arguments.seeds:
                for name in arguments.arms or list(every):
                    run(name, every[name], seed, zoo, dataset, arguments.work, arguments)
    report(arguments.work, arguments.zoo, arguments.held_out)


if __name__ == "__main__":
    main()
