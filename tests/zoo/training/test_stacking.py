"""The ways to apply many members at once."""

from __future__ import annotations

import pytest
import torch

from kt_ray.config import RecipeConfig
from kt_ray.data import Dataset
from kt_ray.networks import PaperArchitecture
from kt_ray.zoo.recipe import Order, epoch_of
from kt_ray.zoo.training.objectives import Candidate, source_objective
from kt_ray.zoo.training.optimizers import Parameters
from kt_ray.zoo.training.stacking import Implementation, fresh

ARCHITECTURE = PaperArchitecture("basic_to_simple")
SEEDS = [0, 1, 2]


def gradient(implementation: Implementation, dataset: Dataset) -> torch.Tensor:
    """Of fresh sources on their first batches: [members, parameters]."""
    orders = [Order(seed, len(dataset.train), RecipeConfig()) for seed in SEEDS]
    draw = epoch_of(orders, torch.device("cpu")).batch(0, 128)
    objective = source_objective(ARCHITECTURE, len(SEEDS), dataset.train, Candidate(implementation, len(SEEDS)))
    return objective.gradient(Parameters(fresh(ARCHITECTURE.source_network, SEEDS)), draw)


@pytest.mark.parametrize("implementation", ["vmap", "grouped", "channels_last", "unfold"])
def test_gradients_are_those_of_one_network_at_a_time(dataset: Dataset, implementation: Implementation) -> None:
    expected = gradient("loop", dataset)
    off = (gradient(implementation, dataset) - expected).norm() / expected.norm()
    assert off < 1e-4  # channels last on a CPU: 1e-2


def test_gradients_in_bfloat16_are_near_those_in_float32(dataset: Dataset) -> None:
    draw = epoch_of([Order(0, len(dataset.train), RecipeConfig())], torch.device("cpu")).batch(0, 128)
    parameters = Parameters(fresh(ARCHITECTURE.source_network, [0]))
    exact, rounded = (
        source_objective(ARCHITECTURE, 1, dataset.train, Candidate("loop", 1, bfloat16))
        .gradient(parameters, draw)
        .clone()
        for bfloat16 in (False, True)
    )
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.05
