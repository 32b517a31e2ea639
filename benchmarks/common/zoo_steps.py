"""Training steps of the zoo's two phases on one core: this project's, and nn.Module with torch.optim."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from kt_ray.config import RecipeConfig
from kt_ray.data import LabelledImages
from kt_ray.networks import PaperArchitecture, State
from kt_ray.zoo.recipe import Order, epoch_of
from kt_ray.zoo.training.objectives import Fused
from kt_ray.zoo.training.optimizers import Optimizer, Parameters
from kt_ray.zoo.training.stacking import fresh

ARCHITECTURE = PaperArchitecture("basic_to_simple")
PAPER = RecipeConfig()
BATCH = 128
PHASES = ("source", "target")


def frozen_around(seed: int) -> State:
    """Return a stack of one untrained stem and head."""
    state = fresh(ARCHITECTURE.source_network, [seed])
    return {name: value for name, value in state.items() if not name.startswith("block.")}


def our_steps(phase: str, data: LabelledImages, seed: int = 0) -> Callable[[int], None]:
    """Return this project's training of one member in `phase`, called with a number of steps."""
    if phase == "source":
        parameters, objective = Parameters(fresh(ARCHITECTURE.source_network, [seed])), Fused(ARCHITECTURE, data)
    else:
        parameters = Parameters(fresh(ARCHITECTURE.target_block, [seed]))
        objective = Fused(ARCHITECTURE, data, frozen_around(seed), variants=2)
    optimizer = Optimizer(parameters.theta, [getattr(PAPER, phase)], [1.0])
    order = Order(seed, len(data), PAPER)

    def run(steps: int) -> None:
        draw = epoch_of([order], "cpu")
        for step in range(steps):
            batch = draw.batch(step % (len(data) // BATCH) * BATCH, BATCH)
            optimizer.step(objective.gradient(parameters, batch), optimizer.scales[0])

    return run


def plain_network(phase: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network of a phase as the paper trains it, in the target phase its block alone, and the optimiser."""
    network = ARCHITECTURE.source_network()
    if phase == "target":
        network.eval().requires_grad_(False)
        network.block = ARCHITECTURE.target_block()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return network, torch.optim.SGD(trained, 0.01, 0.9)
