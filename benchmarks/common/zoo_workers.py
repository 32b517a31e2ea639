"""Processes of one thread that time training steps: this project's, or those of a plain loop with loader workers."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import transforms

from common.plain import PILImages
from common.zoo_steps import ARCHITECTURE, BATCH, PHASES, frozen_around, our_steps, plain_network
from kt_ray.config import DatasetConfig
from kt_ray.data import LabelledImages, load_dataset
from kt_ray.zoo.training.objectives import Fused


class PlainLoop:
    """The paper's way: loader processes, nn.Module, torch.optim.SGD, autograd through the whole network."""

    def __init__(self, data: LabelledImages) -> None:
        torch.manual_seed(0)
        self.images = PILImages(data, transforms.Compose([transforms.RandomHorizontalFlip(), transforms.ToTensor()]))

    def segment(self, phase: str, steps: int, workers: int = 0) -> tuple[float, float]:
        """Wall and own processor seconds of a step; the first two steps, where workers start, are not timed."""
        network, optimizer = plain_network(phase)
        loader = DataLoader(self.images, BATCH, shuffle=True, num_workers=workers)
        batches = iter(loader)
        for _ in range(2):
            self._step(network, optimizer, batches)
        began, before = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self._step(network, optimizer, batches)
        return (time.perf_counter() - began) / steps, (time.process_time() - before) / steps

    @staticmethod
    def _step(network: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[list[Tensor]]) -> None:
        images, labels = next(batches)
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()


class Ours:
    """The trainer of this project in one process."""

    def __init__(self, data: LabelledImages, seed: int) -> None:
        self.some, self.frozen = data.take(slice(0, 40 * BATCH)), frozen_around(seed)
        self.steps = {phase: our_steps(phase, data if phase == "source" else self.some, seed) for phase in PHASES}

    def segment(self, phase: str, steps: int) -> tuple[float, float]:
        """Wall and processor seconds of a step; of "cache": of one image, mirrored too."""
        began, before = time.perf_counter(), time.process_time()
        if phase == "cache":
            Fused(ARCHITECTURE, self.some, self.frozen, variants=2)
            steps = len(self.some)
        else:
            self.steps[phase](steps)
        return (time.perf_counter() - began) / steps, (time.process_time() - before) / steps


def serve(connection: Connection, seed: int | None, config: DatasetConfig) -> None:
    """A process of one thread that answers (phase, steps, …) with the seconds of a step; the plain loop has no seed."""
    torch.set_num_threads(1)
    data = load_dataset(config).train
    runner: PlainLoop | Ours = PlainLoop(data) if seed is None else Ours(data, seed)
    for phase in (*PHASES, "cache") if seed is not None else ():
        runner.segment(phase, 2)  # compiles
    connection.send("ready")
    while (order := connection.recv()) is not None:
        connection.send(runner.segment(*order))


class Worker:
    """The other end of `serve`."""

    def __init__(self, seed: int | None, config: DatasetConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, seed, config))
        self.process.start()

    def stop(self) -> None:
        self.connection.send(None)
        self.process.join()


def together(workers: list[Worker], *order: Any) -> tuple[float, float]:
    """Wall and processor seconds of a step in each of several processes at once: their mean."""
    for worker in workers:
        worker.connection.send(order)
    answers = [worker.connection.recv() for worker in workers]
    return statistics.mean(wall for wall, _ in answers), statistics.mean(processor for _, processor in answers)
