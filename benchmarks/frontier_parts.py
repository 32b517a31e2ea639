"""What each learned part of the frontier's translators is worth: probes, correction, the options of the steps.

A trained translator loses one part, or all, without being trained again: learned probes become draws of the mixture, or
strokes, which need no data; the correction becomes nothing; the steps get the options that they began with. Selection
members of the zoo that was learned from, and test members of a zoo of another recipe, all on selection images, so that
no test image is spent. Ratios are to the mean accuracy of the sources.

    KT_RAY_DATA=… python benchmarks/frontier_parts.py SOURCES OTHER --learned fast=FILE … exact=FILE …
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
from pathlib import Path

import torch
from common.results import write

from kt_ray.config import DatasetConfig
from kt_ray.data import Dataset, load_dataset
from kt_ray.translation.checkpoint import load_translator
from kt_ray.translation.evaluation import Transplants, translate
from kt_ray.translation.gauss_newton import GaussNewton
from kt_ray.translation.probe_images import mixture, strokes, to_parameters
from kt_ray.translation.translator import Translator
from kt_ray.zoo.store import ZooStore

PARTS = ("probes", "correction", "steps")
STARTS = ("mixture", "strokes")
KEPT = [(True, True, True), (False, True, True), (True, False, True), (True, True, False), (False, False, False)]


def without(translator: Translator, kept: tuple[bool, ...], start: str, dataset: Dataset, seed: int) -> Translator:
    """Return a copy of `translator` whose parts that are not `kept` are as before training; probes begin as `start`."""
    reduced = copy.deepcopy(translator)
    probes, correction, steps = kept
    assert reduced.projector is not None
    assert reduced.refiner is not None
    if not probes:
        generator, count = torch.Generator().manual_seed(1000 + seed), len(reduced.projector.probes)
        if start == "strokes":
            drawn = strokes(count, reduced.architecture.image_shape, generator)
        else:
            drawn = mixture(dataset.train.images, count, generator)
        reduced.projector.probes.data = to_parameters(drawn)
    if not correction:
        reduced.scale.data.zero_()
    if not steps:
        options, count = reduced.config.refinement, reduced.config.projection.probes
        classes, layout = reduced.architecture.classes, reduced.layout
        reduced.refiner.gauss_newton = GaussNewton(options.steps, options.rows, count, classes, layout)
    return reduced.eval()


def arms() -> list[tuple[tuple[bool, ...], str]]:
    """Return which parts are kept and how probes begin that are not, for each line of the table."""
    both = [(kept, start) for kept, start in itertools.product(KEPT, STARTS) if not kept[0]]
    return [(kept, "") for kept in KEPT if kept[0]] + both


def main() -> None:
    """Measure every arm on both zoos and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", help="zoo that the translators learned from")
    parser.add_argument("other", help="zoo of another recipe")
    parser.add_argument("--learned", nargs="+", required=True, metavar="NAME=FILE", help="translators, a seed each")
    parser.add_argument("--images", type=int, default=2000, help="selection images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    store = ZooStore(arguments.sources)
    dataset = load_dataset(DatasetConfig(**store.definition()["dataset"]))
    zoos = {"same": store.read().where("selection"), "other": ZooStore(arguments.other).read().where("test")}
    images = dataset.selection.take(slice(0, arguments.images))
    measured = {name: Transplants(zoo, images) for name, zoo in zoos.items()}
    sources = {name: float(seen.accuracy(seen.zoo.part("source")).mean()) for name, seen in measured.items()}
    found: dict[tuple[str, tuple[bool, ...], str], dict[str, list[float]]] = {}
    for item in arguments.learned:
        name, file = item.split("=", 1)
        translator = load_translator(Path(file)).translator
        for kept, start in arms():
            entry = found.setdefault((name, kept, start), {})
            seed = len(entry.get("same_mean", []))
            reduced = without(translator, kept, start, dataset, seed)
            for where, seen in measured.items():
                ratios = seen.accuracy(translate(reduced, seen.zoo)) / sources[where]
                entry.setdefault(f"{where}_mean", []).append(float(ratios.mean()))
                entry.setdefault(f"{where}_min", []).append(float(ratios.min()))
            print(name, kept, start, {key: round(values[-1], 4) for key, values in entry.items()}, flush=True)
        report(found, {name: len(seen.zoo) for name, seen in measured.items()}, sources)


def report(
    found: dict[tuple[str, tuple[bool, ...], str], dict[str, list[float]]],
    counts: dict[str, int],
    sources: dict[str, float],
) -> None:
    """Write the result and its table."""
    lines = [
        f"Ratios to the sources' mean accuracy: {counts['same']} selection members, {sources['same']:.4f}; "
        f"{counts['other']} members of another recipe, {sources['other']:.4f}. Mean over seeds (range), worst "
        "member of any seed. Parts are taken away, nothing is trained again.",
        "",
        "| translator | probes | correction | steps | same recipe | worst | other recipe | worst | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    headline = {}
    for (name, kept, start), entry in found.items():
        words = [start if start else "learned", *("learned" if part else "none" for part in kept[1:])]
        words[2] = "learned" if kept[2] else "as begun"
        cells = []
        for where in ("same", "other"):
            means = entry[f"{where}_mean"]
            cells += [
                f"{statistics.mean(means):.4f} ({max(means) - min(means):.4f})",
                f"{min(entry[f'{where}_min']):.4f}",
            ]
        lines.append(f"| {name} | {' | '.join(words)} | {' | '.join(cells)} | {len(entry['same_mean'])} |")
        if all(kept) or not any(kept):
            label = f"{name}_{'learned' if all(kept) else start}"
            headline |= {f"{label}_other_recipe_over_source": statistics.mean(entry["other_mean"])}
    results = [
        {"translator": name, "kept": dict(zip(PARTS, kept, strict=True)), "start": start} | entry
        for (name, kept, start), entry in found.items()
    ]
    write("frontier_parts", headline, results, list(range(3)), "\n".join(lines))


if __name__ == "__main__":
    main()
