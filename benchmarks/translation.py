"""How well blocks are translated: the paper's way, each ingredient added in turn, families, zoo sizes, the best.

Every arm is trained from several seeds on the training members of one zoo, for the same number of steps unless said.
Arms are chosen by selection members and selection images, which every run keeps in its result.
A run of an arm is a folder in the work directory: what is there is not run again, one that was cut off goes on from its
last report. Nothing looks at test images until `--report`, which puts the blocks of all runs, the baselines and the
translators named by `--add` into the test members and runs the test images through them. A report was made whenever
arms were added; `translation_fresh.py` shows what frozen translators do on members that no report ever saw.

    KT_RAY_DATA=… kt-ray zoo build benchmarks/translation.yaml
    KT_RAY_DATA=… python benchmarks/translation.py ZOO WORK --arms faithful '+ BN folded' --seeds 0 1 2
    KT_RAY_DATA=… python benchmarks/translation.py ZOO WORK --report

Zoos of other images and pairs come of the same file, such as
`--set zoo.name=fashion --set dataset.name=fashion_mnist` or `--set zoo.name=mlp --set pair=basic_to_mlp`, with
`--set zoo.members.train=25 --set zoo.members.brief=0 --set zoo.members.test=32`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common.results import provenance
from safetensors.torch import save_file
from translation_arms import ARMS, TIMES, UNTRAINED, Settings, settings_of, trial
from translation_card import ship
from translation_report import report

from kt_ray.config import DatasetConfig
from kt_ray.data import Dataset, load_dataset
from kt_ray.translation.checkpoint import save_translator
from kt_ray.translation.training import TranslatorTraining
from kt_ray.translation.transplants import translate, transplant_accuracy
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore

SELECTION_IMAGES = 500  # while training: it only shows how an arm goes
FITTED_MEMBERS = 32  # training members whose translated blocks show the fit


def read(uri: str, members: int | None) -> tuple[Zoo, Dataset]:
    """The zoo with only its first `members` training members and no briefly trained ones (all if None); its dataset."""
    store = ZooStore(uri)
    zoo, dataset = store.read(), load_dataset(DatasetConfig(**store.definition()["dataset"]))
    if members is not None:
        columns = zip(*(zoo.index[name].to_pylist() for name in ("id", "split", "has_target")), strict=True)
        rows = list(columns)
        kept = set(sorted(name for name, split, whole in rows if split == "train" and whole)[:members])
        zoo = zoo.take(torch.tensor([n for n, (name, split, _) in enumerate(rows) if split != "train" or name in kept]))
    return zoo, dataset


def run(
    name: str, settings: Settings, seed: int, zoo: Zoo, dataset: Dataset, work: Path, arguments: argparse.Namespace
) -> None:
    """Train one arm from one seed and keep its translator and its blocks, unless they are there."""
    members = len(zoo.where("train"))
    folder = work / f"{name}, {members} members, seed {seed}".replace(" ", "-").replace(",", "").replace("+", "and")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "result.json").exists():
        return
    checkpoint, untrained = folder / "training.safetensors", settings.get(UNTRAINED, False)
    steps = arguments.steps * settings.get(TIMES, 1)
    config = trial(settings, seed, steps, arguments.batch, arguments.reports, arguments.mixer)
    few = replace(dataset, selection=dataset.selection.take(slice(0, SELECTION_IMAGES)))
    training = TranslatorTraining(config, zoo, few)
    if checkpoint.exists():
        training.load(checkpoint)
    if untrained:
        torch.nn.init.zeros_(training.translator.scale)
    history: list[dict[str, float]] = []
    started = time.process_time()
    while not training.finished and not untrained:
        history.append(training.run_epoch())
        training.save(checkpoint)
        print(name, seed, training.epoch, {key: round(value, 4) for key, value in history[-1].items()}, flush=True)
    trained = time.process_time()
    blocks = translate(training.translator, zoo.where("test"))
    seconds = (time.process_time() - trained) / len(zoo.where("test"))
    save_file({key: value.contiguous() for key, value in blocks.items()}, folder / "blocks.safetensors")
    chosen = zoo.where("selection")
    selected = transplant_accuracy(chosen, translate(training.translator, chosen), dataset.selection)
    fitted = zoo.where("train").take(torch.arange(min(members, FITTED_MEMBERS)))
    fit = transplant_accuracy(fitted, translate(training.translator, fitted), few.selection)
    result: dict[str, Any] = {
        "arm": name,
        "seed": seed,
        "training_members": members,
        "config": config.model_dump(mode="json"),
        "steps": 0 if untrained else steps,
        "batch": arguments.batch,
        "parameters": sum(value.numel() for value in training.model.parameters()),
        "training_cpu_seconds": trained - started,
        "seconds": seconds,
        "history": history,
        "selection": selected.tolist(),
        "training_members_mean": float(fit.mean()),
        "provenance": provenance(),
    }
    print(name, seed, "selection", float(selected.mean()), float(selected.min()), flush=True)
    extra = {key: result[key] for key in ("arm", "seed", "training_members")} | {"zoo": zoo.fingerprint}
    save_translator(folder / "translator.safetensors", training.translator, config.translator, zoo.architecture, extra)
    (folder / "result.json").write_text(json.dumps(result))
    checkpoint.unlink(missing_ok=True)


def main() -> None:
    """Run the arms asked for, or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", help="directory or URI of the zoo")
    parser.add_argument("work", type=Path, help="directory of runs")
    parser.add_argument("--arms", nargs="*", help="names of arms; all if none is named")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--members", nargs="*", type=int, help="numbers of training members; all if none is given")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--reports", type=int, default=4)
    parser.add_argument("--mixer", default="small", choices=["paper", "small", "tiny"])
    parser.add_argument("--report", action="store_true", help="evaluate on the test images and write the tables")
    parser.add_argument("--name", default="translation", help="of the result's files")
    parser.add_argument("--add", nargs="*", default=[], metavar="NAME=FILE", help="with --report: further translators")
    parser.add_argument("--fit-steps", type=int, default=0, help="with --report: steps of the fits to each member")
    parser.add_argument("--ship", metavar="FOLDER", help="with --report: this run's translator goes into the package")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.report:
        zoo, dataset = read(arguments.zoo, None)
        added = dict(item.split("=", 1) for item in arguments.add)
        table = report(arguments.name, arguments.work, arguments.zoo, zoo, dataset, added, arguments.fit_steps)
        if arguments.ship:
            ship(arguments.work / arguments.ship, table)
        return
    for members in arguments.members or [None]:
        zoo, dataset = read(arguments.zoo, members)
        for seed in arguments.seeds:
            for name in arguments.arms or list(ARMS):
                run(name, settings_of(name), seed, zoo, dataset, arguments.work, arguments)


if __name__ == "__main__":
    main()
