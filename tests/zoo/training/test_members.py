from __future__ import annotations

import dataclasses
import math
from typing import Literal

import pytest
import torch
from torch import nn

from kt_ray.config import MemberCounts, PhaseConfig, RecipeConfig
from kt_ray.data import Dataset, as_float
from kt_ray.jobs.device import device_name
from kt_ray.networks import PaperArchitecture
from kt_ray.zoo.members import Member, members_of
from kt_ray.zoo.recipe import Order
from kt_ray.zoo.training.members import Plan, train_members
from kt_ray.zoo.training.optimizers import Optimizer
from kt_ray.zoo.training.stacking import Implementation, fresh

ARCHITECTURE = PaperArchitecture("basic_to_simple")
PHASE = PhaseConfig(epochs=2, batch_size=100)
RECIPE = RecipeConfig(source=PHASE, target=PHASE, snapshots=(1,))
MEMBERS = members_of(0, MemberCounts(train=2, selection=1, test=1))
# So few steps because rounding turns a ReLU on or off here and there, and training amplifies that: to 3e-5 after
# three steps, past 4e-4 after eight. Other flips of the images change the weights by 3e-3 or more.
BRIEF = {"epochs": 2, "batch_size": 400, "steps": 3}
TOLERANCE = 2e-4


def test_same_build_twice_gives_the_same_bits(dataset: Dataset) -> None:
    first, first_rows = train_members(MEMBERS[:2], RECIPE, ARCHITECTURE, dataset)
    again, again_rows = train_members(MEMBERS[:2], RECIPE, ARCHITECTURE, dataset)
    assert all(torch.equal(first[name], again[name]) for name in first if not name.startswith("target."))
    assert all(torch.equal(first[name][1::2], again[name][1::2]) for name in first)
    measured = ["target_accuracy", "seconds"]  # NaN for snapshots; a time
    assert first_rows.drop_columns(measured).equals(again_rows.drop_columns(measured))


@pytest.mark.parametrize("implementation", ["loop", "vmap", "grouped", "channels_last", "unfold"])
def test_batch_mates_and_implementation_change_rounding_only(dataset: Dataset, implementation: Implementation) -> None:
    source, target = PhaseConfig(**BRIEF), PhaseConfig(**BRIEF, learning_rate=0.3)  # a target's gradients are small
    recipe = RecipeConfig(source=source, target=target, snapshots=(1,))
    alone, _ = train_members(MEMBERS[2:3], recipe, ARCHITECTURE, dataset)
    beside, rows = train_members(
        MEMBERS[:3], recipe, ARCHITECTURE, dataset, plan=Plan(implementation, implementation, 3)
    )
    assert rows["id"].to_pylist()[4:] == [MEMBERS[2].id] * 2
    for name in alone:
        torch.testing.assert_close(beside[name][4:], alone[name], atol=TOLERANCE, rtol=0, equal_nan=True)


def test_the_index_says_what_trained_a_member_and_how(dataset: Dataset) -> None:
    brief = PhaseConfig(epochs=1, steps=1)
    _, rows = train_members(
        MEMBERS[:1], RecipeConfig(source=brief, target=brief), ARCHITECTURE, dataset, plan=Plan("grouped", "vmap", 4)
    )
    assert rows["device"].to_pylist() == [device_name("cpu")]
    assert rows["plan"].to_pylist() == ["grouped and vmap, 4 at once"]


def test_batch_mates_change_no_bit_of_fused_members(dataset: Dataset) -> None:
    alone, _ = train_members(MEMBERS[2:3], RECIPE, ARCHITECTURE, dataset)
    beside, _ = train_members(MEMBERS[:3], RECIPE, ARCHITECTURE, dataset, plan=Plan(at_once=3))
    for name in alone:
        torch.testing.assert_close(beside[name][4:], alone[name], atol=0, rtol=0, equal_nan=True)


def test_rows_tell_member_epoch_and_target(dataset: Dataset) -> None:
    parameters, rows = train_members(MEMBERS[:1], RECIPE, ARCHITECTURE, dataset)
    assert rows["epoch"].to_pylist() == [1, 2]
    assert rows["has_target"].to_pylist() == [False, True]
    assert parameters["target.conv1.weight"].isnan().flatten(1).all(1).tolist() == [True, False]
    assert math.isnan(rows["target_accuracy"][0].as_py())
    assert rows["source_accuracy"][1].as_py() > 0.15  # chance is 0.10


def test_equals_a_plain_loop_over_one_network(dataset: Dataset) -> None:
    """The reference: nn.Module, SGD, one network; same initialisation, batches and flips."""
    member, phase = MEMBERS[0], PhaseConfig(epochs=1, batch_size=128)
    recipe = RecipeConfig(source=phase, target=phase)
    trained, _ = train_members([member], recipe, ARCHITECTURE, dataset)

    network, block = ARCHITECTURE.source_network(), ARCHITECTURE.target_block()
    _load(network, fresh(ARCHITECTURE.source_network, [member.seed_of("source")]))
    _load(block, fresh(ARCHITECTURE.target_block, [member.seed_of("target")]))
    _plain_epoch(network.train(), network, member.seed_of("source order"), dataset)
    network.eval().requires_grad_(False)
    _plain_epoch(nn.Sequential(network.stem, block, network.head), block, member.seed_of("target order"), dataset)

    expected = {name.replace("block.", "source."): value for name, value in network.state_dict().items()}
    expected |= {f"target.{name}": value for name, value in block.state_dict().items()}
    for name, value in trained.items():
        torch.testing.assert_close(value[0], expected[name], atol=1e-4, rtol=0)


def _load(module: nn.Module, stack: dict[str, torch.Tensor]) -> None:
    module.load_state_dict({name: value[0] for name, value in stack.items()}, strict=False)


def _plain_epoch(network: nn.Module, trained: nn.Module, seed: int, dataset: Dataset) -> None:
    optimizer = torch.optim.SGD(trained.parameters(), 0.01, 0.9)
    draw = Order(seed, len(dataset.train), RecipeConfig()).epoch()
    for chosen, flipped in zip(draw.rows.split(128), draw.flips.split(128), strict=True):
        x = as_float(dataset.train.images[chosen])
        x[flipped] = x[flipped].flip(-1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), dataset.train.labels[chosen]).backward()
        optimizer.step()


@pytest.mark.parametrize("pair", ["basic_to_biased", "basic_to_mlp", "basic_to_attention"])
def test_every_pair_trains(dataset: Dataset, pair: str) -> None:
    phase = PhaseConfig(epochs=1, batch_size=256)
    recipe = RecipeConfig(source=phase, target=phase, horizontal_flip=False)
    parameters, _ = train_members(MEMBERS[:2], recipe, PaperArchitecture(pair), dataset)  # type: ignore[arg-type]
    assert all(value.isfinite().all() for value in parameters.values())


def test_members_draw_their_own_hyperparameters(dataset: Dataset) -> None:
    """Members with unlike numbers of epochs, rates and shifts; each as if it were alone, and each in the index."""
    drawn = {"epochs": (1, 2), "learning_rate": (0.001, 0.01), "weight_decay": (0.01, 1.0)}
    source = PhaseConfig.model_validate(BRIEF | drawn)
    target = PhaseConfig.model_validate(BRIEF | {"epochs": 1, "learning_rate": (0.1, 1.0)})
    recipe = RecipeConfig(source=source, target=target, shift=(0, 1), initial_scale=(0.5, 1.5))
    members = members_of(0, MemberCounts(train=3, selection=1, test=1))
    together, rows = train_members(members, recipe, ARCHITECTURE, dataset, plan=Plan("grouped", "grouped", 5))
    assert {0, 1} == set(rows["shift"].to_pylist())
    assert {1, 2} == set(rows["epoch"].to_pylist())
    for name in ("source_learning_rate", "source_weight_decay", "target_learning_rate", "initial_scale"):
        assert len(set(rows[name].to_pylist())) == 5
    for i, member in enumerate(members):
        alone, row = train_members([member], recipe, ARCHITECTURE, dataset)
        measured = ["source_accuracy", "target_accuracy", "seconds", "plan"]
        assert row.drop_columns(measured).to_pylist() == rows.slice(i, 1).drop_columns(measured).to_pylist()
        for name in alone:
            torch.testing.assert_close(together[name][i], alone[name][0], atol=TOLERANCE, rtol=0)


def test_brief_members_have_a_source_alone(dataset: Dataset) -> None:
    member = Member.of(0, "brief", 0)
    recipe = RECIPE.model_copy(update={"brief": PhaseConfig(steps=3, batch_size=64)})
    parameters, rows = train_members([member, MEMBERS[0]], recipe, ARCHITECTURE, dataset)
    assert rows["id"].to_pylist() == ["brief-000000", "test-000000", "test-000000"]
    assert rows["has_target"].to_pylist() == [False, False, True]
    assert rows["split"][0].as_py() == "train"
    assert parameters["source.conv1.weight"][0].isfinite().all()
    assert parameters["target.conv1.weight"][0].isnan().all()


def test_accuracy_is_nan_without_selection_images(dataset: Dataset) -> None:
    none = dataclasses.replace(dataset, selection=dataset.selection.take(slice(0, 0)))
    for plan in (Plan(), Plan("grouped", "grouped", 2)):
        _, rows = train_members(MEMBERS[:2], RECIPE, ARCHITECTURE, none, plan=plan)
        assert math.isnan(rows["source_accuracy"][1].as_py())


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizer_equals_torch(kind: Literal["sgd", "adamw"]) -> None:
    """Two rows with their own rates and decays against two optimisers of torch."""
    torch.manual_seed(0)
    theta, gradients = torch.randn(2, 5), torch.randn(4, 2, 5)
    phases = [PhaseConfig(optimizer=kind, learning_rate=rate, weight_decay=10 * rate) for rate in (0.1, 0.01)]
    expected = [row.clone().requires_grad_() for row in theta]
    options = {"momentum": 0.9} if kind == "sgd" else {}
    build = torch.optim.SGD if kind == "sgd" else torch.optim.AdamW
    theirs = [
        build([row], lr=phase.learning_rate, weight_decay=phase.weight_decay, **options)
        for row, phase in zip(expected, phases, strict=True)
    ]
    ours = Optimizer(theta, phases, [1.0] * 4)
    for gradient, scales in zip(gradients, ours.scales, strict=True):
        for i, row in enumerate(expected):
            row.grad = gradient[i].clone()
            theirs[i].step()
        ours.step(gradient.clone(), scales)
        torch.testing.assert_close(theta, torch.stack(expected).detach())
