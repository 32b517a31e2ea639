"""What only a CUDA device can show: `make test-gpu`."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from kt_ray.config import MemberCounts, PhaseConfig, RecipeConfig
from kt_ray.data import Dataset
from kt_ray.networks import PaperArchitecture
from kt_ray.zoo.members import members_of
from kt_ray.zoo.training.members import Plan, train_members
from kt_ray.zoo.training.plan import candidates, measure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ARCHITECTURE = PaperArchitecture("basic_to_simple")
PHASE = PhaseConfig(epochs=1, batch_size=128)
RECIPE = RecipeConfig(source=PHASE, target=PHASE, shift=1)
MEMBERS = members_of(0, MemberCounts(train=4, selection=1, test=1))


@pytest.mark.parametrize("implementation", ["grouped", "channels_last", "unfold", "vmap"])
def test_members_are_those_of_the_cpu_within_rounding(dataset: Dataset, implementation: str) -> None:
    expected, _ = train_members(MEMBERS, RECIPE, ARCHITECTURE, dataset)
    plan = Plan(implementation, implementation, 3)  # type: ignore[arg-type]
    found, _ = train_members(MEMBERS, RECIPE, ARCHITECTURE, dataset, "cuda", plan)
    for name, value in expected.items():
        assert found[name].device.type == "cpu"
        torch.testing.assert_close(found[name], value, atol=5e-3, rtol=0)


@pytest.mark.parametrize("implementation", ["grouped", "channels_last", "unfold", "vmap"])
def test_replayed_steps_are_the_launched_ones(dataset: Dataset, implementation: str) -> None:
    """Each epoch ends with a smaller batch, and the target phase reads kept activations."""
    phase = PhaseConfig(epochs=3, batch_size=96, optimizer="adamw", learning_rate=0.001, weight_decay=0.01)
    recipe = RecipeConfig(source=phase, target=phase)
    plan = Plan(implementation, implementation, 3)  # type: ignore[arg-type]
    expected, _ = train_members(MEMBERS, recipe, ARCHITECTURE, dataset, "cuda", plan)
    found, _ = train_members(MEMBERS, recipe, ARCHITECTURE, dataset, "cuda", replace(plan, recorded=True))
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_no_step_waits_for_the_device(dataset: Dataset) -> None:
    """Calls that wait for the device are as many with four times the steps."""
    waits = []
    for batch_size in (128, 32):
        phase = PHASE.model_copy(update={"batch_size": batch_size})
        recipe, plan = RecipeConfig(source=phase, target=phase), Plan("grouped", "grouped", 6)
        train_members(MEMBERS, recipe, ARCHITECTURE, dataset, "cuda", plan)  # compiles, allocates
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                train_members(MEMBERS, recipe, ARCHITECTURE, dataset, "cuda", plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchroniz" in str(one.message) for one in seen))
    assert waits[0] == waits[1]


@pytest.mark.parametrize("phase", ["source", "target"])
def test_every_candidate_can_be_measured(dataset: Dataset, phase: str) -> None:
    for candidate in candidates(ARCHITECTURE, "cuda", phase, 8):
        assert measure(candidate, phase, ARCHITECTURE, dataset.train.to("cuda"), RECIPE) > 0
