"""Zoo of CIFAR ResNets for `whole_networks.py`: trained once from seeds, kept as files, gone on with where it stopped.

python benchmarks/resnet_zoo.py DIRECTORY --members 16
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kt_ray.config import ClassifierConfig, DatasetConfig, ResNetOptions
from kt_ray.data import Dataset, as_float, load_dataset
from kt_ray.distillation.networks import build_network
from kt_ray.networks.checkpoint import load_network
from kt_ray.networks.state_file import write_state

DATASET = "fashion_mnist"
STEM_STRIDE = 2
EPOCHS, BATCH, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 2, 128, 0.1, 0.9, 5e-4
SELECTION_IMAGES = 5000
DEVELOPMENT = 1000  # seeds from here on are of networks on which methods may be tried; those below are reported


class Kind(NamedTuple):
    """A ResNet's layers and the channels of its first stage."""

    depth: int
    width: int = 16

    def __str__(self) -> str:
        return f"resnet{self.depth}" if self.width == 16 else f"resnet{self.depth}x{self.width}"


KINDS = (Kind(20), Kind(8))
UNSEEN = (Kind(14), Kind(8, width=24))  # of a depth and of a width on which nothing was tuned


def dataset_named(name: str) -> Dataset:
    """Return the images on which every network of a zoo is trained."""
    return load_dataset(DatasetConfig(name=name, selection_images=SELECTION_IMAGES))


def build(kind: Kind, seed: int, shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Module:
    """Return a fresh network of the zoo."""
    options = ResNetOptions(depth=kind.depth, width=kind.width, stem_stride=STEM_STRIDE)
    return build_network(ClassifierConfig(resnet=options), shape, 10, seed)


def train(network: nn.Module, dataset: Dataset, seed: int, fast: bool = True, epochs: int = EPOCHS) -> float:
    """Train `network` by SGD with one cycle of learning rate; return the seconds of its processor.

    Images are mirrored at random, unless they are digits. `fast` computes in bfloat16 with channels last.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = dataset.train.images, dataset.train.labels
    steps = len(labels) // BATCH * epochs
    layout = torch.channels_last if fast else torch.contiguous_format
    network = network.train().to(memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    began = time.process_time()
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for rows in order[: steps // epochs * BATCH].split(BATCH):
            batch = as_float(images[rows])
            flipped = torch.rand(BATCH, generator=generator) < (0.5 if dataset.name != "mnist" else 0.0)
            batch[flipped] = batch[flipped].flip(-1)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                loss = cross_entropy(network(batch.contiguous(memory_format=layout)), labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval().to(memory_format=torch.contiguous_format)
    return time.process_time() - began


def member(directory: Path, kind: Kind, seed: int, dataset: Dataset) -> nn.Module:
    """Return the trained network, from its file if there is one, else trained and kept there."""
    path = directory / f"{kind}-{seed}.safetensors"
    network = build(kind, seed, dataset.image_shape)
    if path.exists():
        load_network(network, path)
        return network.eval()
    seconds = train(network, dataset, seed)
    write_state(path, network.state_dict(), {"seconds": json.dumps(seconds)})
    return network


@torch.no_grad()
def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of `images`, uint8, that `network` gets right."""
    predicted = torch.cat([network(as_float(part)).argmax(1) for part in images.split(500)])
    return float((predicted == labels).double().mean())


def main() -> None:
    """Train what is missing, development networks first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--members", type=int, default=16, help="networks to report on, of each depth")
    parser.add_argument("--development", type=int, default=2, help="networks to try methods on, of each depth")
    parser.add_argument("--unseen", type=int, default=3, help="networks of each depth and width not tuned on")
    parser.add_argument("--dataset", default=DATASET)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = dataset_named(arguments.dataset)
    development = range(DEVELOPMENT, DEVELOPMENT + arguments.development)
    wanted = [(kind, seed) for seed in (*development, *range(arguments.members)) for kind in KINDS]
    wanted += [(kind, seed) for seed in range(arguments.unseen) for kind in UNSEEN]
    for kind, seed in wanted:
        began = time.perf_counter()
        network = member(arguments.directory, kind, seed, dataset)
        reached = accuracy(network, dataset.selection.images, dataset.selection.labels)
        print(f"{kind} {seed}: {reached:.4f} on selection images, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
