"""This project's distillation (tensors on the device, answers of the teacher kept) against a plain DataLoader loop.

Both train the same student by the same method on the same images: Factor Transfer with flips, where an image has two
views and the teacher's answers can be kept; Factor Transfer with random crops, where the teacher runs in every step;
and no teacher with crops. The plain loop is the usual one: PIL images, torchvision transforms, a DataLoader, teacher in
every step. Rounds alternate; a figure is the median of the rounds. Making the kept answers is timed apart.

    python benchmarks/distillation.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common.plain import PILImages
from common.results import write
from common.timing import in_turn, medians
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from kt_ray.config import (
    ClassifierConfig,
    DatasetConfig,
    DistillTrialConfig,
    FitConfig,
    MethodConfig,
    ParaphraserConfig,
    ResNetOptions,
    TeacherConfig,
)
from kt_ray.data import Dataset, LabelledImages, load_dataset
from kt_ray.distillation.cache import Cache
from kt_ray.distillation.features import run_with_features
from kt_ray.distillation.methods import Method
from kt_ray.distillation.stages import Stages

CASES = {"ft, flips": ("ft", 0), "ft, crops and flips": ("ft", 4), "none, crops and flips": ("none", 4)}


def plain_loader(data: LabelledImages, fit: FitConfig, workers: int) -> DataLoader[Any]:
    """Return a DataLoader over PIL images that are cropped, flipped and made tensors one by one."""
    crop: list[Any] = [transforms.RandomCrop(data.images.shape[-1], padding=fit.crop)] if fit.crop else []
    images = PILImages(data, transforms.Compose([*crop, transforms.RandomHorizontalFlip(), transforms.ToTensor()]))
    return DataLoader(images, fit.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def plain_epoch(
    loader: DataLoader[Any], student: nn.Module, teacher: nn.Module, method: Method, optimizer: Any, device: str
) -> float:
    """One epoch as a paper's repository writes it; its mean loss."""
    student.train()
    total, count = 0.0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        targets = {}
        if method.terms:
            with torch.no_grad():
                targets = method.targets(run_with_features(teacher, images, method.teacher_layers))
        loss = method(run_with_features(student, images, method.student_layers), labels, targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
        count += len(labels)
    return total / count


def compare(
    name: str, base: DistillTrialConfig, dataset: Dataset, arguments: argparse.Namespace, cache: Path
) -> dict[str, Any]:
    """Seconds an epoch of both, round by round, after one epoch each to warm up."""
    method_name, crop = CASES[name]
    fit = FitConfig(epochs=arguments.rounds + 1, learning_rate=0.05, schedule="constant", crop=crop)
    config = base.model_copy(update={"method": MethodConfig(name=method_name), "training": fit})
    stages = Stages(Cache(cache), dataset, arguments.device)
    teacher = stages.teacher(config.teacher).module
    stages.student(config.model_copy(update={"training": fit.model_copy(update={"crop": 1})}))  # the paraphraser
    began = time.perf_counter()
    ours = stages.student(config)
    answering = time.perf_counter() - began

    student = stages.network(config.student, config.seed).to(arguments.device)
    method = stages.method(config, stages.teacher(config.teacher), student).to(arguments.device)
    parameters = [*student.parameters(), *method.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=fit.momentum, weight_decay=fit.weight_decay)
    loader = plain_loader(dataset.train, fit, arguments.workers)
    losses: dict[str, float] = {}

    def our_epoch() -> None:
        losses["ours"] = ours.run_epoch()["loss"]

    def their_epoch() -> None:
        losses["plain"] = plain_epoch(loader, student, teacher, method, optimizer, arguments.device)

    epochs = {"ours": our_epoch, "plain": their_epoch}
    in_turn(epochs, 1)  # warms up
    seconds = in_turn(epochs, arguments.rounds)
    median = medians(seconds)
    result = {
        "seconds_an_epoch": seconds,
        "images_a_second": {side: len(dataset.train) / value for side, value in median.items()},
        "last_loss": losses,
        "speedup": median["plain"] / median["ours"],
        "seconds_to_make_kept_answers": answering,
    }
    print(name, result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist5k", help="mnist5k needs no download")
    parser.add_argument("--images", type=int, default=3500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="of the plain loop's DataLoader")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset(DatasetConfig(name=arguments.dataset, selection_images=0, train_images=arguments.images))

    def resnet(width: int) -> ClassifierConfig:
        return ClassifierConfig(resnet=ResNetOptions(depth=8, width=width, stem_stride=2))

    once = FitConfig(epochs=1, crop=0, learning_rate=0.05)
    base = DistillTrialConfig(
        teacher=TeacherConfig(network=resnet(16), training=once),
        paraphraser=ParaphraserConfig(training=once),
        student=resnet(4),
    )
    with tempfile.TemporaryDirectory() as cache:
        cases = {name: compare(name, base, dataset, arguments, Path(cache)) for name in CASES}
    headline = {"speedup": cases["ft, flips"]["speedup"]}
    headline |= {f"speedup {name}": case["speedup"] for name, case in cases.items()}
    lines = [
        f"ResNet-8 of width 16 → ResNet-8 of width 4, {len(dataset.train):,} images of {arguments.dataset}, "
        f"{arguments.workers} DataLoader workers, {arguments.device}; medians of {arguments.rounds} epochs, in turn.",
        "",
        "| training | plain loop, images a second | this project | speedup |",
        "|---|---|---|---|",
    ]
    for name, case in cases.items():
        rates = case["images_a_second"]
        lines.append(f"| {name} | {rates['plain']:,.0f} | {rates['ours']:,.0f} | {case['speedup']:.2f} |")
    kept = cases["ft, flips"]["seconds_to_make_kept_answers"]
    lines += ["", f"Keeping the teacher's answers to every image and its mirror took {kept:.1f} s, once."]
    write("distillation", headline, {"cases": cases, "arguments": vars(arguments)}, [0], "\n".join(lines))


if __name__ == "__main__":
    main()
