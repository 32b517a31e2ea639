"""Members are trained on a device as on the CPU."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
import torch

from kt_ray.config import DatasetConfig, MemberCounts, PhaseConfig, RecipeConfig
from kt_ray.data import Dataset, load_dataset
from kt_ray.networks import PaperArchitecture
from kt_ray.zoo.members import members_of
from kt_ray.zoo.training import trainer
from kt_ray.zoo.training.members import Plan, train_members
from kt_ray.zoo.training.plan import candidates
from tests.devices.pretended import pretended_cuda

PHASE = PhaseConfig(epochs=1, batch_size=64)
TUNED = PhaseConfig(
    epochs=1,
    batch_size=64,
    optimizer="adamw",
    learning_rate=(0.001, 0.01),
    weight_decay=(1e-4, 1e-2),
    schedule="one_cycle",
)
RECIPES = {
    "the paper's": RecipeConfig(source=PHASE, target=PHASE, brief=PHASE),
    "drawn": RecipeConfig(source=TUNED, target=PHASE, brief=PHASE, shift=(0, 2), initial_scale=(0.5, 1.5)),
}
MEMBERS = members_of(0, MemberCounts(train=2, selection=1, test=1, brief=1))
PAIRS = ("basic_to_simple", "basic_to_biased", "basic_to_mlp", "basic_to_attention")
PLANS = ("grouped", "unfold", "vmap", "loop")
CASES = [("the paper's", pair, "grouped") for pair in PAIRS] + [("drawn", PAIRS[0], plan) for plan in PLANS]


@pytest.fixture(scope="module")
def images() -> Dataset:
    return load_dataset(DatasetConfig(name="mnist5k", train_images=128, selection_images=32))


@pytest.mark.parametrize(("recipe", "pair", "implementation"), CASES)
def test_members_are_those_of_the_cpu(images: Dataset, recipe: str, pair: str, implementation: str) -> None:
    architecture, plan = PaperArchitecture(pair), Plan(implementation, implementation, 2)
    expected, _ = train_members(MEMBERS, RECIPES[recipe], architecture, images, "cpu", plan)
    with pretended_cuda():
        found, _ = train_members(MEMBERS, RECIPES[recipe], architecture, images, "cuda", plan)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("recipe", "pair", "implementation"), CASES)
def test_replayed_steps_are_those_of_the_cpu(images: Dataset, recipe: str, pair: str, implementation: str) -> None:
    """128 images in batches of 24 are six steps, the last with 8 images: each size of batch has its own graph."""
    phases = {name: {"batch_size": 24} for name in ("source", "target", "brief")}
    drawn = RECIPES[recipe].model_dump(exclude_unset=True)
    config = RecipeConfig.model_validate(drawn | {name: drawn[name] | phase for name, phase in phases.items()})
    architecture, plan = PaperArchitecture(pair), Plan(implementation, implementation, 2)
    expected, _ = train_members(MEMBERS, config, architecture, images, "cpu", plan)
    with pretended_cuda() as device:
        found, _ = train_members(MEMBERS, config, architecture, images, "cuda", replace(plan, recorded=True))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5, equal_nan=True)
    assert device.replays > 0


def test_waits_do_not_grow_with_steps(images: Dataset) -> None:
    """Only the images of an epoch are copied and its accuracy read: batches are chosen on the device."""
    waits = []
    for batch_size in (64, 16):
        phase = PHASE.model_copy(update={"batch_size": batch_size})
        recipe = RecipeConfig(source=phase, target=phase)
        with pretended_cuda() as device:
            train_members(
                MEMBERS[:2], recipe, PaperArchitecture(PAIRS[0]), images, "cuda", Plan("grouped", "grouped", 2)
            )
            waits.append(device.waits)
    assert waits[0] == waits[1]


def test_draws_on_the_device_are_those_of_a_hash_on_the_cpu(images: Dataset) -> None:
    """The default plan of a GPU copies images, labels, seeds and initial weights to it, and no order of an epoch."""
    architecture, plan = PaperArchitecture(PAIRS[0]), Plan("grouped", "grouped", 2, counter_draws=True)
    expected, _ = train_members(MEMBERS, RECIPES["drawn"], architecture, images, "cpu", plan)
    waits = []
    for epochs in (1, 3):
        phase = PHASE.model_copy(update={"epochs": epochs})
        with pretended_cuda() as device:
            found, _ = train_members(MEMBERS, RECIPES["drawn"], architecture, images, "cuda", plan)
            before = device.waits
            train_members(MEMBERS[:2], RecipeConfig(source=phase, target=phase), architecture, images, "cuda", plan)
            waits.append(device.waits - before)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5, equal_nan=True)
    assert waits[0] == waits[1]


def test_an_actor_measures_its_share_of_a_device(images: Dataset) -> None:
    with pretended_cuda(), mock.patch.object(torch.cuda, "get_per_process_memory_fraction", return_value=0.25):
        actor = trainer.Trainer(RECIPES["the paper's"], PaperArchitecture(PAIRS[0]), images, 0.25)
        assert actor.ready() == ("cuda", "Pretended, 20.0 GiB")
        fastest = candidates(actor.architecture, "cuda", "target", 2)[0]
        assert actor.measure(fastest, "target") > 0


@pytest.mark.parametrize(("share", "expected"), [(1, 256), (0.125, 32), (0.001, 1)])
def test_members_at_once_are_as_many_as_memory_holds(images: Dataset, share: float, expected: int) -> None:
    """40 GiB of 80 are free, 0.4 of that for a step; 4 members take 1.2 GiB, 8 take 1.4: 51 MiB each, 1 GiB for all."""
    peaks = [1.2 * 2**30, 1.4 * 2**30]
    with pretended_cuda(), mock.patch.object(torch.cuda, "max_memory_allocated", side_effect=peaks):
        actor = trainer.Trainer(RECIPES["the paper's"], PaperArchitecture(PAIRS[0]), images, share)
        with mock.patch.object(torch.cuda, "get_per_process_memory_fraction", return_value=share):
            assert actor.members_that_fit() == expected
    assert trainer.Trainer(RECIPES["the paper's"], PaperArchitecture(PAIRS[0]), images, 0).members_that_fit() == 8


def test_members_at_once_are_halved_until_they_fit(images: Dataset) -> None:
    tried = []

    def train(*arguments: object) -> tuple[dict[str, torch.Tensor], None]:
        tried.append(arguments[-1].at_once)  # type: ignore[attr-defined]
        if tried[-1] > 2:
            raise torch.AcceleratorError("CUDA error: out of memory")
        return {}, None

    with pretended_cuda(), mock.patch.object(trainer, "train_members", train):
        actor = trainer.Trainer(RECIPES["the paper's"], PaperArchitecture(PAIRS[0]), images, 1)
        for _ in range(2):
            actor.train(MEMBERS, Plan("grouped", "grouped", 8))
    assert tried == [8, 4, 2, 2]
