"""One table of Knowledge Translation's MNIST pair: what each way to the small block costs and gives.

Source network; the small block trained in its place (stem and head frozen, as in a zoo); the small network trained from
scratch with no teacher, by KD and by Factor Transfer; the block translated. Hyper-parameters are the literature's, not
tuned here. Everything trained is kept in --directory: run again with another --translator, only that row is made anew.

    python benchmarks/factor_transfer_mnist.py
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common.distilling import parser_of, spread, stages_of
from common.markdown import table
from common.results import write
from torch import Tensor, nn

from kt_ray.config import (
    ClassifierConfig,
    DatasetConfig,
    DistillTrialConfig,
    FitConfig,
    FTOptions,
    MethodConfig,
    ParaphraserConfig,
    TeacherConfig,
)
from kt_ray.data import Dataset, LabelledImages, load_dataset
from kt_ray.distillation.cache import Made, fingerprint
from kt_ray.distillation.distill import trained_student
from kt_ray.distillation.methods import Method
from kt_ray.distillation.stages import Stages, Trained, run_resumed
from kt_ray.distillation.training import StudentTraining, accuracy, no_teaching
from kt_ray.networks.cost import parameter_count
from kt_ray.networks.stacked import join
from kt_ray.studies.translators import translator_file
from kt_ray.translation.checkpoint import load_translator

STUDENTS = {"none": "no teacher", "kd": "KD student", "ft": "FT student"}
Row = dict[str, Any]


class FrozenAround(nn.Module):
    """A network of which only the block is trained; stem and head stay frozen, in evaluation mode (the paper's)."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.network = network
        network.stem.requires_grad_(False)
        network.head.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenAround:
        super().train(mode)
        self.network.stem.eval()
        self.network.head.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def trained_target(stages: Stages, source: Trained, fit: FitConfig, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """The source's network with the small block, trained from `seed`, in its place; and the facts of its training."""
    target = stages.network(ClassifierConfig(family="target"), seed)
    around = {name: value for name, value in source.module.state_dict().items() if not name.startswith("block.")}
    target.load_state_dict(around, strict=False)

    def train(progress: Path) -> Made:
        training = StudentTraining(
            FrozenAround(target), Method({}, (), ()), no_teaching, fit, stages.dataset, seed, stages.device
        )
        facts = run_resumed(training, fit.epochs, progress, "target block", stages.report)
        return target.state_dict(), facts

    key = fingerprint("target block", source.key, fit.model_dump(mode="json"), seed, stages.dataset.fingerprint)
    state, facts = stages.cache.get(key, train)
    target.load_state_dict(state)
    return target.eval(), facts


def translated(path: Path, source: nn.Module, stages: Stages) -> tuple[nn.Module, dict[str, Any]]:
    """The source with its block translated; none of these training images takes part, unless it made the translator."""
    translator = load_translator(path).translator.eval()
    network = {name.removeprefix("block."): value.unsqueeze(0) for name, value in source.state_dict().items()}
    start = time.perf_counter()
    with torch.no_grad():
        block = {name: value[0] for name, value in translator(network).items()}
    seconds = time.perf_counter() - start
    target = stages.network(ClassifierConfig(family="target"), 0)
    around = {name: value for name, value in source.state_dict().items() if not name.startswith("block.")}
    target.load_state_dict(around | join(block=block), strict=False)
    return target.eval(), {"images_seen": 0, "seconds": seconds}


def rows_of(seed: int, stages: Stages, fit: FitConfig, translator: Path | None) -> list[Row]:
    """The table of one seed. A student's row does not count its teacher's training."""
    test = stages.dataset.test.to(stages.device)
    source_config = TeacherConfig(network=ClassifierConfig(family="source"), training=fit, seed=seed)
    source = stages.teacher(source_config)
    rows = [row("source network", source.module, source.facts, test)]
    rows.append(
        row("trained target block, stem and head the source's", *trained_target(stages, source, fit, seed), test)
    )
    for name, words in STUDENTS.items():
        config = DistillTrialConfig(
            seed=seed,
            teacher=source_config,
            paraphraser=ParaphraserConfig(training=fit.model_copy(update={"learning_rate": 0.3, "weight_decay": 0.0})),
            student=ClassifierConfig(family="target"),
            method=MethodConfig(name=name, ft=FTOptions(layers=("block",))),
            training=fit,
        )
        rows.append(row(f"small network from scratch, {words}", *trained_student(stages, config), test))
    if translator:
        rows.append(
            row("translated block, stem and head the source's", *translated(translator, source.module, stages), test)
        )
    return rows


def row(name: str, network: nn.Module, facts: dict[str, Any], test: LabelledImages) -> Row:
    """A row of the table."""
    return {
        "name": name,
        "accuracy": accuracy(network, test),
        "parameters": parameter_count(network),
        "images_seen": facts["images_seen"],
        "seconds": facts["seconds"],
    }


def summarised(seeds: list[list[Row]]) -> list[Row]:
    """One row a kind of network over the seeds' tables."""
    rows = []
    for same in zip(*seeds, strict=True):
        found = spread([entry["accuracy"] for entry in same])
        measured = {"accuracy": found["mean"], "std": found["std"], "accuracies": found["accuracies"]}
        rows.append(same[0] | measured | {"seconds": statistics.mean(entry["seconds"] for entry in same)})
    return rows


def shown(entry: Row) -> str:
    """Mean and standard deviation of the accuracy; of one seed, the accuracy alone."""
    mean = f"{100 * entry['accuracy']:.2f}"
    return f"{mean} ± {100 * entry['std']:.2f}" if len(entry["accuracies"]) > 1 else mean


def as_markdown(rows: list[Row], fit: FitConfig, dataset: Dataset, translator: str | None) -> str:
    """The rows as a table, with what they mean."""
    about = (
        f"MNIST, the pair basic_to_simple, {len(dataset.train):,} training images, {fit.epochs} epochs each, "
        f"{len(rows[0]['accuracies'])} seed(s), accuracy on test images. Hyper-parameters are the literature's (KD: "
        "T = 4, α = 0.9; FT: β = 500, k = 0.5, layer `block`), not tuned. A student's row does not count its "
        "teacher and paraphraser, a translated block's not its source, nor what made its translator: a zoo, and the "
        "training images to which the mixture of its synthetic images was fitted."
    )
    lines = [
        {
            "network": entry["name"],
            "test accuracy": shown(entry),
            "parameters": f"{entry['parameters']:,}",
            "training images seen": f"{entry['images_seen']:,}",
            "seconds": f"{entry['seconds']:.3g}",
        }
        for entry in rows
    ]
    made_by = f"Translator: `{translator}`." if translator else "No translated block: no `--translator` was given."
    return "\n\n".join([about, table(lines), made_by])


def main() -> None:
    parser = parser_of(__doc__, "factor_transfer_mnist", seeds=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--translator", default="pretrained:basic_to_simple", help="a file, or one that ships; '': none"
    )
    parser.add_argument("--train-images", type=int, default=None, help="fewer, for a trial of the script itself")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset(DatasetConfig(name="mnist", train_images=arguments.train_images))
    fit = FitConfig(epochs=arguments.epochs, learning_rate=0.05, schedule="cosine", warmup=0.05, crop=0)
    stages = stages_of(dataset, arguments)
    path = translator_file(arguments.translator, None) if arguments.translator else None
    seeds = list(range(arguments.seeds))
    tables = [rows_of(seed, stages, fit, path) for seed in seeds]
    rows = summarised(tables)
    headline = {entry["name"]: entry["accuracy"] for entry in rows}
    results = {"rows": rows, "fit": fit.model_dump(mode="json"), "translator": arguments.translator}
    write("factor_transfer_mnist", headline, results, seeds, as_markdown(rows, fit, dataset, arguments.translator))


if __name__ == "__main__":
    main()
