"""The arms of `benchmarks/frontier.py`: translators, a seed each, what they cost and reach on held-out networks."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from kt_ray.config import TranslatorConfig
from kt_ray.data import Dataset, LabelledImages
from kt_ray.networks import Architecture, State
from kt_ray.translation.block_runner import stem_activations, surround
from kt_ray.translation.checkpoint import load_translator
from kt_ray.translation.translator import Translator, build_translator
from kt_ray.translation.transplants import readable
from kt_ray.translation.units import write as written
from kt_ray.zoo.members import Zoo

AT_ONCE = 160  # members times probes in a batch: what stays in the cache
FEW, IMAGES = 8, 50  # members and images at once
UNLEARNED = ((16, 1), (80, 3))  # probes, steps


@dataclass
class Arm:
    """One kind of block: translators, a seed each, and what they cost and reach on one zoo."""

    learned: bool
    translators: list[Translator]
    milliseconds: list[float] = field(default_factory=list)
    accuracies: list[Tensor] = field(default_factory=list)

    def summary(self, ceiling: float, source: float) -> dict[str, float]:
        """Ratios to the mean accuracy of trained targets: mean over seeds, their range, the worst network of any seed;
        the mean over that of sources; median milliseconds."""
        means = [float(part.mean()) / ceiling for part in self.accuracies]
        return {
            "mean_ratio": statistics.mean(means),
            "spread": max(means) - min(means),
            "min_ratio": min(float(part.min()) for part in self.accuracies) / ceiling,
            "mean_over_source": statistics.mean(means) * ceiling / source,
            "min_over_source": min(float(part.min()) for part in self.accuracies) / source,
            "milliseconds": statistics.median(self.milliseconds),
            "seeds": len(means),
        }


class Unlearned(Translator):
    """A translator whose family is left out: the base, then the steps."""

    def forward(self, source: State) -> State:
        assert self.projector is not None
        around = self.projector.surroundings(source)
        units = self.projector(source, around)[0].units
        if self.refiner is not None:
            units = self.refiner([units], units, source, around)
        return written(units, self.layout)


def learned_arms(named: list[str]) -> dict[str, Arm]:
    """Return an arm for each name, with every translator that is given under it."""
    files: dict[str, list[Path]] = defaultdict(list)
    for item in named:
        name, file = item.split("=", 1)
        files[name].append(Path(file))
    return {
        f"learned, {name}": Arm(True, [load_translator(path).translator.eval() for path in paths])
        for name, paths in files.items()
    }


def unlearned_arms(architecture: Architecture, dataset: Dataset, seeds: int) -> dict[str, Arm]:
    """Return the arms of `UNLEARNED`."""
    options = {
        f"unlearned, {probes} probes, {steps} steps": (
            probes,
            {"steps": steps, "method": "gauss_newton", "images": "projection"},
        )
        for probes, steps in UNLEARNED
    }
    return {
        name: Arm(False, [unlearned(architecture, dataset, *option, seed) for seed in range(seeds)])
        for name, option in options.items()
    }


def unlearned(
    architecture: Architecture, dataset: Dataset, probes: int, refinement: dict[str, object], seed: int
) -> Translator:
    """Return an untrained translator on mixture probes of `seed`."""
    config = TranslatorConfig(
        family="axial_transformer", base="projected", projection={"probes": probes}, refinement=refinement
    )
    body = build_translator(config, architecture).body
    translator = Unlearned(body, config, architecture)
    translator.draw_probes(dataset.train.images, torch.Generator().manual_seed(1000 + seed))
    return translator.eval()


def measure(arms: dict[str, Arm], zoo: Zoo, images: LabelledImages, rounds: int) -> dict[str, Tensor]:
    """Fill in the costs and accuracies of `arms`, and return those of sources and trained targets."""
    members = readable(zoo)
    blocks: dict[tuple[str, int], State] = {}
    for name, arm in arms.items():
        for seed, translator in enumerate(arm.translators):
            blocks[name, seed], taken = timed(translator, members, rounds)
            arm.milliseconds.append(taken)
        print(name, f"{statistics.median(arm.milliseconds):.2f} ms", flush=True)
    named = {f"{name}/{seed}": block for (name, seed), block in blocks.items()}
    accuracies = predicted_right(named | {"trained target": zoo.part("target")}, zoo, images)
    for name, arm in arms.items():
        arm.accuracies = [accuracies[f"{name}/{seed}"] for seed in range(len(arm.translators))]
    return {name: accuracies[name] for name in ("source", "trained target")}


@torch.no_grad()
def predicted_right(blocks: dict[str, State], zoo: Zoo, images: LabelledImages) -> dict[str, Tensor]:
    """Return the accuracies of each member with each kind of block, and with its source."""
    members = readable(zoo)
    right = {name: torch.zeros(len(zoo)) for name in [*blocks, "source"]}
    for start in range(0, len(zoo), FEW):
        rows = slice(start, start + FEW)
        few = {name: value[rows] for name, value in members.items()}
        for batch, labels in images.batches(IMAGES):
            around = surround(few, stem_activations(few, batch, zoo.architecture), zoo.architecture)
            logits = {"source": around.wanted_logits}
            for name, block in blocks.items():
                outputs = around.outputs({key: value[rows] for key, value in block.items()})
                logits[name] = around.logits(around.features(outputs))
            for name, found in logits.items():
                right[name][rows] += (found.argmax(-1) == labels).sum(1)
    return {name: count / len(images) for name, count in right.items()}


@torch.no_grad()
def timed(translator: Translator, members: State, rounds: int) -> tuple[State, float]:
    """Return the translated blocks of `members` and the processor's milliseconds a member, the least of the rounds."""
    assert translator.projector is not None
    step, total = max(2, AT_ONCE // len(translator.projector.probes)), len(members["conv1.weight"])
    times, parts = [], []
    for number in range(rounds + 1):  # the first one warms up
        starts = range(0, total if number else step, step)
        began = time.process_time()
        parts = [translator({name: value[at : at + step] for name, value in members.items()}) for at in starts]
        times.append(time.process_time() - began)
    blocks = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return blocks, 1000 * min(times[1:]) / total
