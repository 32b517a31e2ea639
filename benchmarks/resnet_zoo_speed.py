"""A step of training a ResNet-20 of `resnet_zoo.py`: kt_ray's zoo beside a plain PyTorch loop, on one core.

The plain loop is float32, on a DataLoader of torchvision's transforms, as tutorials have it. The zoo's members and a
loop without DataLoader compute in bfloat16 where the processor does. Convolutions alone, forward and backward, in the
same precision, bound what any loop of PyTorch's convolutions can reach.

    python benchmarks/resnet_zoo_speed.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from common.plain import PILImages
from common.results import write
from common.timing import in_turn, medians
from resnet_zoo import (
    BATCH,
    DATASET,
    KINDS,
    LEARNING_RATE,
    MOMENTUM,
    STEM_STRIDE,
    WEIGHT_DECAY,
    build,
    dataset_named,
    train,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import transforms

from kt_ray.config import MemberCounts, NetworkChoice, PhaseConfig, RecipeConfig
from kt_ray.data import Dataset, as_float
from kt_ray.jobs.device import native_bfloat16
from kt_ray.networks.chosen import architecture_of
from kt_ray.zoo.members import members_of
from kt_ray.zoo.training.members import Plan, train_members

ROUNDS, STEPS = 5, 60
BFLOAT16 = native_bfloat16("cpu")


def works(dataset: Dataset) -> dict[str, Callable[[], object]]:
    """Return what trains a network for `STEPS`, by name."""
    transform = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.ToTensor()])
    images = dataset.train.take(slice(0, STEPS * BATCH))
    loader = DataLoader(PILImages(images, transform), BATCH, shuffle=True, drop_last=True)

    def plain() -> None:
        network = build(KINDS[0], 0).train()
        optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
        for batch, labels in loader:
            optimizer.zero_grad()
            cross_entropy(network(batch), labels).backward()
            optimizer.step()

    small = replace(dataset, train=images, selection=dataset.selection.take(slice(0, 0)))
    options = {"depth": KINDS[0].depth, "stem_stride": STEM_STRIDE}
    architecture = architecture_of("halved", NetworkChoice(name="cifar_resnet", options=options), (1, 28, 28), 10)
    phase = PhaseConfig(epochs=1, batch_size=BATCH, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    members = [one for one in members_of(0, MemberCounts(train=1, selection=1, test=1, brief=1)) if one.brief]
    plan = Plan("loop", "loop", 1, bfloat16=BFLOAT16)
    return {
        "plain loop": plain,
        "loop without DataLoader": lambda: train(build(KINDS[0], 0), small, 0, fast=BFLOAT16, epochs=1),
        "kt_ray's zoo": lambda: train_members(members, RecipeConfig(brief=phase), architecture, small, plan=plan),
        "convolutions alone": convolutions(build(KINDS[0], 0), as_float(images.images[:BATCH])),
    }


def convolutions(network: nn.Module, batch: Tensor) -> Callable[[], None]:
    """Return what runs the convolutions of `STEPS` steps of `network` and nothing else."""
    given = list[tuple[nn.Conv2d, Tensor]]()
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [layer.register_forward_pre_hook(lambda layer, x: given.append((layer, x[0]))) for layer in layers]
    with torch.no_grad():
        network(batch)
    for hook in hooks:
        hook.remove()
    dtype, runs = torch.bfloat16 if BFLOAT16 else torch.float32, []
    for layer, read in given:
        x = read.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_(layer is not layers[0])
        layer.to(dtype).to(memory_format=torch.channels_last)
        runs.append((layer, x, [one for one in (x, layer.weight) if one.requires_grad], torch.ones_like(layer(x))))

    def run() -> None:
        for _ in range(STEPS):
            for layer, x, wanted, gradient in runs:
                torch.autograd.grad(layer(x), wanted, gradient)

    return run


def main() -> None:
    """Time them in turn and write the table."""
    torch.set_num_threads(1)
    found = medians(in_turn(works(dataset_named(DATASET)), ROUNDS, time.process_time))
    lines = ["| what trains | seconds of a step over the plain loop's | speedup |", "|---|---|---|"]
    for name, one in found.items():
        lines.append(f"| {name} | {one / found['plain loop']:.2f} | {found['plain loop'] / one:.2f} |")
    headline = {
        "speedup": found["plain loop"] / found["kt_ray's zoo"],
        "largest speedup": found["plain loop"] / found["convolutions alone"],
    }
    lines += ["", f"Medians of {ROUNDS} rounds in turn, batches of {BATCH}; seconds are of the processor."]
    text = "\n".join(lines)
    write("resnet_zoo_speed", headline, {name: one / STEPS for name, one in found.items()}, [0], text)
    print(text)


if __name__ == "__main__":
    main()
