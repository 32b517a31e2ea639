"""Frozen translators on networks that no report ever saw: the test members of a zoo made from another seed.

Nothing is chosen here. Accuracies are of the complete test split; latency is that of one network alone, the median of
several, beside processor seconds a network in batches.

    KT_RAY_DATA=… kt-ray zoo build benchmarks/translation.yaml --set zoo.name=mnist_fresh --set zoo.seed=1 \\
        --set zoo.members.train=16 --set zoo.members.brief=0 --set zoo.members.selection=1
    KT_RAY_DATA=… python benchmarks/translation_fresh.py FRESH --unlike ZOO --translators NAME=FILE NAME=FILE

Arms of `translation.py` in which nothing is learned need no file: `--untrained 'three starts alone' --seeds 0 1 2`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from common.results import write
from common.timing import seconds
from translation_arms import settings_of, trial

from kt_ray.config import DatasetConfig
from kt_ray.data import Dataset, load_dataset
from kt_ray.networks import State
from kt_ray.translation.checkpoint import load_translator
from kt_ray.translation.evaluation import evaluate
from kt_ray.translation.translator import Translator, build_translator
from kt_ray.translation.transplants import translate
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore

ALONE = 9  # networks translated one by one for the latency


def shared_members(first: Zoo, second: Zoo) -> int:
    """How many sources the two zoos have in common."""
    name = next(name for name in first.parameters if name.startswith("source."))
    rows = [{row.numpy().tobytes() for row in zoo.parameters[name]} for zoo in (first, second)]
    return len(rows[0] & rows[1])


def untrained(arm: str, seed: int, zoo: Zoo, dataset: Dataset) -> Translator:
    """Return the translator of an arm with the probes of `seed`, whose family writes nothing."""
    config = trial(settings_of(arm), seed, steps=1, batch=1, reports=1, mixer="small").translator
    translator = build_translator(config, zoo.architecture)
    translator.draw_probes(dataset.train.images, torch.Generator().manual_seed(1000 + seed))
    torch.nn.init.zeros_(translator.scale)
    return translator.eval()


def latency(translator: Translator, held_out: Zoo) -> float:
    """Seconds to translate one network, the median of several."""
    members = [held_out.take(torch.tensor([index])) for index in range(ALONE)]
    return statistics.median(seconds(lambda member=member: translate(translator, member)) for member in members)


def main() -> None:
    """Evaluate the translators named, once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", help="directory or URI of the fresh zoo")
    parser.add_argument("--unlike", help="the zoo on which the translators were made and reported")
    parser.add_argument("--translators", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--untrained", nargs="*", default=[], metavar="ARM", help="arms in which nothing is learned")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of the probes of untrained arms")
    parser.add_argument("--name", default="translation_fresh", help="of the result's files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    store = ZooStore(arguments.zoo)
    zoo, dataset = store.read(), load_dataset(DatasetConfig(**store.definition()["dataset"]))
    if arguments.unlike and (shared := shared_members(zoo, ZooStore(arguments.unlike).read())):
        raise SystemExit(f"{shared} networks of {arguments.zoo} are in {arguments.unlike}, too; give it another seed")
    held_out = zoo.where("test")
    files = dict(item.split("=", 1) for item in arguments.translators)
    translators = {name: load_translator(Path(file)).translator for name, file in files.items()}
    translators |= {
        f"{arm}, seed {seed}": untrained(arm, seed, zoo, dataset)
        for arm in arguments.untrained
        for seed in arguments.seeds
    }
    blocks: dict[str, State] = {}
    taken: dict[str, tuple[float, float]] = {}
    for name, translator in translators.items():
        started = time.process_time()
        blocks[name] = translate(translator, held_out)
        taken[name] = ((time.process_time() - started) / len(held_out), latency(translator, held_out))
    first = next(iter(translators.values()))
    evaluation = evaluate(first, zoo, dataset, others=blocks)
    ceiling = evaluation.row("trained target").mean
    lines = [
        "| block | mean | worst | mean ratio | worst ratio | agreement | seconds in batches | seconds alone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in evaluation.rows:
        if row.name == "translated":
            continue  # the first of the translators again
        times = " | ".join(f"{value:.2g}" for value in taken[row.name]) if row.name in taken else " | "
        lines.append(
            f"| {row.name} | {row.mean:.4f} | {row.min:.4f} | {row.mean / ceiling:.4f} | {row.min / ceiling:.4f} "
            f"| {row.agreement:.4f} | {times} |"
        )
    lines += [
        "",
        f"{len(held_out)} networks, {len(dataset.test):,} test images. Ratios are to the trained target's mean.",
    ]
    headline = {f"{name}: mean_ratio": evaluation.row(name).mean / ceiling for name in translators}
    headline |= {f"{name}: min_ratio": evaluation.row(name).min / ceiling for name in translators}
    results = {"evaluation": evaluation.to_dict(), "seconds": taken, "zoo": store.definition()["seed"]}
    write(arguments.name, headline, results, [store.definition()["seed"]], "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
