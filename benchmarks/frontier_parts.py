"""What each learned part of the frontier's fast translator is worth: probes, correction, the options of the steps.

Two figures for each arm. Trained: the translator is trained from the beginning without the part. Taken away: it is
trained whole, then loses the part and is not trained again. What is not learned stays as it begins: probes are draws of
a mixture fitted to training images, or strokes, which need no data; there is no correction; the steps have their first
options. Arms without steps show what the network that writes the correction is worth over its base.

Measured are selection members of the zoo that is learned from, and test members of a zoo of another recipe, all on
selection images, so that no test image is spent. Trained translators are kept in WORK: the command goes on where it
stopped.

    KT_RAY_DATA=… kt-ray zoo build benchmarks/frontier_other_recipe.yaml
    KT_RAY_DATA=… python benchmarks/frontier_parts.py WORK --zoo SOURCES --other OTHER
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from common.results import write

from kt_ray.config import DatasetConfig, TrainingConfig, TrialConfig
from kt_ray.data import Dataset, load_dataset
from kt_ray.search.space import apply
from kt_ray.studies.study_file import read_study
from kt_ray.translation.checkpoint import load_translator, save_translator
from kt_ray.translation.training import TranslatorTraining
from kt_ray.translation.translator import Translator
from kt_ray.translation.transplants import Transplants, translate
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore

STUDY = Path(__file__).parent / "frontier_fast.yaml"
Values = dict[str, list[float]]  # "same_mean", "other_min", …: one a seed


@dataclass(frozen=True)
class Arm:
    """A translator some of whose parts are learned; `steps` is None if it has none."""

    probes: bool = True
    correction: bool = True
    steps: bool | None = True
    start: str = "mixture"

    def cells(self) -> list[str]:
        """Return probes, correction and steps in words."""
        probes = f"learned, begun as {self.start}" if self.probes else self.start
        steps = "none" if self.steps is None else "learned" if self.steps else "as begun"
        return [probes, "learned" if self.correction else "none", steps]

    def name(self) -> str:
        """Return the name of the arm's files and headlines."""
        return "_".join(cell.replace(", begun as ", "_").replace(" ", "_") for cell in self.cells())

    def learns(self, parameter: str) -> bool:
        """Return whether the parameter of that name belongs to a part that is learned."""
        if parameter.startswith("projector."):
            return self.probes
        return bool(self.steps) if parameter.startswith("refiner.") else self.correction

    def config(self, base: TrialConfig, seed: int) -> TrialConfig:
        """Return the trial that trains the arm, apart from what `beginning` freezes."""
        options = {"seed": seed, "translator.projection.learned": self.probes}
        options |= {"translator.projection.images": self.start}
        return apply(base, options | ({"translator.refinement.steps": 0} if self.steps is None else {}))


WHOLE = Arm()
ARMS = [
    WHOLE,
    replace(WHOLE, correction=False),
    replace(WHOLE, steps=False),
    replace(WHOLE, probes=False),
    replace(WHOLE, start="strokes"),
    replace(WHOLE, probes=False, start="strokes"),
    replace(WHOLE, probes=False, steps=None),
    *(Arm(False, False, steps, start) for steps in (False, None) for start in ("mixture", "strokes")),
]


@dataclass
class Measured:
    """What an arm reaches, trained without its missing parts and with them taken away."""

    trained: Values = field(default_factory=dict)
    taken_away: Values = field(default_factory=dict)


def beginning(arm: Arm, base: TrialConfig, seed: int, zoo: Zoo, dataset: Dataset) -> TranslatorTraining:
    """Return the training of `arm` before its first step, with what is not learned frozen."""
    training = TranslatorTraining(arm.config(base, seed), zoo, dataset)
    for model in (training.model, training.translator):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(arm.learns(name))
        if not arm.correction:
            model.scale.data.zero_()
    return training


def trained(arm: Arm, base: TrialConfig, seed: int, zoo: Zoo, dataset: Dataset, work: Path) -> Translator:
    """Return the trained translator of `arm`, which is read from `work` if it was trained before."""
    file = work / f"{arm.name()}-{seed}.safetensors"
    if not file.exists():
        training = beginning(arm, base, seed, zoo, dataset)
        metrics: dict[str, float] = {}
        while not training.finished:
            metrics = training.run_epoch()
            print(f"{arm.name()}, seed {seed}, epoch {training.epoch}: {metrics['accuracy_mean']:.4f}", flush=True)
        save_translator(file, training.translator, training.config.translator, zoo.architecture, {"metrics": metrics})
    return load_translator(file).translator


def taken_away(arm: Arm, training: TranslatorTraining, whole: Translator) -> Translator:
    """Return `whole` without the parts that `arm` does not learn, which are as before its `training`."""
    reduced, learned = training.translator, whole.state_dict()
    state = {name: learned[name] if arm.learns(name) else value for name, value in reduced.state_dict().items()}
    reduced.load_state_dict(state)
    return reduced.eval()


def main() -> None:
    """Train what is missing, measure every arm on both zoos and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="directory of the trained translators")
    parser.add_argument("--zoo", required=True, help="zoo to learn from")
    parser.add_argument("--other", required=True, help="zoo of another recipe")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override the study file")
    parser.add_argument("--images", type=int, default=2000, help="selection images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    base, store = read_study(STUDY, arguments.set).trial, ZooStore(arguments.zoo)
    zoo, dataset = store.read(), load_dataset(DatasetConfig(**store.definition()["dataset"]))
    images = dataset.selection.take(slice(0, arguments.images))
    zoos = {"same": zoo.where("selection"), "other": ZooStore(arguments.other).read().where("test")}
    measured = {name: Transplants(part, images) for name, part in zoos.items()}
    sources = {name: float(seen.accuracy(seen.zoo.part("source")).mean()) for name, seen in measured.items()}

    def measure(translator: Translator, values: Values) -> None:
        for where, seen in measured.items():
            ratios = seen.accuracy(translate(translator, seen.zoo)) / sources[where]
            values.setdefault(f"{where}_mean", []).append(float(ratios.mean()))
            values.setdefault(f"{where}_min", []).append(float(ratios.min()))

    found: dict[Arm, Measured] = {arm: Measured() for arm in ARMS}
    for seed in range(arguments.seeds):
        whole = trained(WHOLE, base, seed, zoo, dataset, arguments.work)
        for arm, results in found.items():
            if arm.probes or arm.correction or arm.steps:
                measure(trained(arm, base, seed, zoo, dataset, arguments.work), results.trained)
            if arm.start == "mixture" or not arm.probes:  # learned probes that began as strokes are in no other arm
                measure(taken_away(arm, beginning(arm, base, seed, zoo, dataset), whole), results.taken_away)
            print(seed, arm.cells(), results, flush=True)
    report(found, {name: len(part) for name, part in zoos.items()}, sources, base.training)


def report(
    found: dict[Arm, Measured], counts: dict[str, int], sources: dict[str, float], training: TrainingConfig
) -> None:
    """Write the result and its table."""
    lines = [
        f"Ratios to the sources' mean accuracy: {counts['same']} selection members, {sources['same']:.4f}; "
        f"{counts['other']} members of another recipe, {sources['other']:.4f}. Mean over seeds (range), worst member "
        f"of any seed. Trained: without the part from the beginning, {training.epochs} × {training.steps_per_epoch} "
        f"steps of {training.batch_size} members. Taken away: trained whole, then without the part.",
        "",
        "| probes | correction | steps | trained, same recipe | other recipe | taken away, same | other recipe |",
        "|---|---|---|---|---|---|---|",
    ]
    headline = {}
    for arm, results in found.items():
        cells = [_cell(values, where) for values in (results.trained, results.taken_away) for where in counts]
        lines.append(f"| {' | '.join(arm.cells() + cells)} |")
        for where in counts:
            if values := (results.trained or results.taken_away).get(f"{where}_mean"):
                headline[f"{arm.name()}_{where}_recipe_over_source"] = statistics.mean(values)
    results = [vars(arm) | vars(entry) for arm, entry in found.items()]
    seeds = len(next(iter(found.values())).trained["same_mean"])
    write("frontier_parts", headline, results, list(range(seeds)), "\n".join(lines))


def _cell(values: Values, where: str) -> str:
    """Return mean, range and worst member, or nothing if the arm was not measured this way."""
    if not values:
        return ""
    means = values[f"{where}_mean"]
    spread, worst = max(means) - min(means), min(values[f"{where}_min"])
    return f"{statistics.mean(means):.4f} ({spread:.4f}), {worst:.4f}"


if __name__ == "__main__":
    main()
