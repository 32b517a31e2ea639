"""Losses are zero where they should be, and weigh what their names say."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kt_ray.config import LossConfig, MemberCounts, NetworkConfig
from kt_ray.data import Dataset, as_float
from kt_ray.networks import PAIRS, PaperArchitecture, stacked
from kt_ray.translation.block_runner import fold_batch_norm, stem_activations, surround
from kt_ray.translation.divergences import kl, relative_error
from kt_ray.translation.losses import TranslationLoss, aligned_mse, best_order, normalised_mse, weight_mse
from kt_ray.translation.transplants import readable
from kt_ray.translation.units import Units, target_layout, to_units, write
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.untrained import untrained_zoo


def test_weight_mse_weighs_tensors_equally() -> None:
    target = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 30)}
    translated = {"a": torch.ones(2, 3), "b": torch.zeros(2, 30)}
    assert torch.equal(weight_mse(translated, target), torch.tensor([0.5, 0.5]))


def test_relative_error_is_over_the_variance() -> None:
    wanted = torch.randn(2, 3, 400)
    assert torch.equal(relative_error(wanted, wanted), torch.zeros(2))
    mean = wanted.mean((1, 2), keepdim=True).expand_as(wanted)
    torch.testing.assert_close(relative_error(mean, wanted), torch.ones(2), atol=0.01, rtol=0)


def test_a_perfect_block_has_no_block_output_loss(dataset: Dataset) -> None:
    """A biased target with as many units as the source can hold the folded source itself."""
    architecture = PaperArchitecture("basic_to_biased", NetworkConfig(target_hidden=6))
    zoo = untrained_zoo(architecture, MemberCounts(train=8, selection=2, test=3))
    loss = TranslationLoss(LossConfig(weight_mse=0, block_output=1), architecture)
    images = as_float(dataset.train.images[:4])
    labels = dataset.train.labels[:4]
    perfect = loss(fold_batch_norm(zoo.part("source")), zoo.parameters, zoo.part("target"), images, labels)
    random = loss(zoo.part("target"), zoo.parameters, zoo.part("target"), images, labels)
    assert float(perfect) == pytest.approx(0, abs=1e-6)
    assert float(random) > 0.1


def test_members_without_target_do_not_count(random_zoo: Zoo) -> None:
    loss = TranslationLoss(LossConfig(), random_zoo.architecture)
    target = random_zoo.part("target")
    translated = {name: (value + 1).requires_grad_() for name, value in target.items()}
    missing = {name: value.clone() for name, value in target.items()}
    for value in missing.values():
        value[::2] = torch.nan
    result = loss(translated, random_zoo.parameters, missing, None)
    result.backward()
    assert result.item() == pytest.approx(1, abs=1e-5)
    for value in translated.values():
        assert value.grad is not None
        assert torch.isfinite(value.grad).all()


def test_needs() -> None:
    architecture = PaperArchitecture("basic_to_simple")
    weights = TranslationLoss(LossConfig(), architecture)
    functional = TranslationLoss(LossConfig(weight_mse=0, block_output=1), architecture)
    assert (weights.needs_images, weights.needs_targets) == (False, True)
    assert (functional.needs_images, functional.needs_targets) == (True, False)


def test_normalised_mse_does_not_see_the_scale_of_a_tensor() -> None:
    target = {"a": torch.randn(2, 3, 4), "b": torch.randn(2, 30)}
    translated = {name: torch.randn_like(value) for name, value in target.items()}
    scaled = [{"a": 100 * state["a"], "b": state["b"]} for state in (translated, target)]
    torch.testing.assert_close(normalised_mse(*scaled), normalised_mse(translated, target))


def test_normalised_mse_of_a_single_number_is_over_its_square() -> None:
    target = {"bias": torch.tensor([[2.0], [-4.0]])}
    translated = {"bias": torch.tensor([[3.0], [-4.0]])}
    assert torch.equal(normalised_mse(translated, target), torch.tensor([0.25, 0.0]))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), pair=st.sampled_from(sorted(PAIRS)))
def test_aligned_mse_sees_neither_order_nor_relu_scale(seed: int, pair: str) -> None:
    torch.manual_seed(seed)
    architecture = PaperArchitecture(pair)
    layout = target_layout(architecture)
    blocks = [stacked.stack(architecture.target_block().state_dict() for _ in range(4)) for _ in range(2)]
    units = to_units(blocks[1], layout)
    moved = units.take(torch.stack([torch.randperm(units.edges.shape[1]) for _ in range(4)]))
    if layout.kernels == 2:
        scale = torch.exp(torch.randn(4, units.edges.shape[1]))
        both = torch.stack([scale, 1 / scale], dim=-1)[:, :, None, :, None]
        moved = Units(moved.edges * both, moved.unit * scale[..., None], moved.channel)
    symmetric = write(moved, layout)
    torch.testing.assert_close(aligned_mse(blocks[1], symmetric, layout), torch.zeros(4), atol=1e-6, rtol=0)
    expected = aligned_mse(blocks[0], blocks[1], layout)
    torch.testing.assert_close(aligned_mse(blocks[0], symmetric, layout), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("units", [3, 6])
def test_best_order_is_the_best(units: int) -> None:
    cost = torch.rand(5, units, units, generator=torch.Generator().manual_seed(0))
    found = cost.gather(2, best_order(cost)[..., None]).sum((1, 2))
    every = [cost[:, torch.arange(units), torch.tensor(order)].sum(1) for order in itertools.permutations(range(units))]
    torch.testing.assert_close(found, torch.stack(every).min(0).values)


def test_kl() -> None:
    logits = torch.randn(2, 5, 10)
    torch.testing.assert_close(kl(logits + 3, logits), torch.zeros(2), atol=1e-6, rtol=0)
    assert (kl(-logits, logits) > 0).all()


@pytest.mark.parametrize("term", ["block_output", "head_input", "kl", "cross_entropy"])
def test_every_functional_term_prefers_the_source(dataset: Dataset, term: str) -> None:
    architecture = PaperArchitecture("basic_to_biased", NetworkConfig(target_hidden=6))
    zoo = untrained_zoo(architecture, MemberCounts(train=8, selection=2, test=3))
    images = as_float(dataset.train.images[:8])
    surroundings = surround(readable(zoo), stem_activations(readable(zoo), images, architecture), architecture)
    labels = surroundings.wanted_logits.mean(0).argmax(1)
    loss = TranslationLoss(LossConfig(weight_mse=0, **{term: 1}), architecture)
    perfect = loss(fold_batch_norm(zoo.part("source")), zoo.parameters, zoo.part("target"), images, labels)
    twice = {name: 2 * value for name, value in zoo.part("target").items()}
    assert float(perfect) < float(loss(twice, zoo.parameters, zoo.part("target"), images, labels))


def test_schedule() -> None:
    config = LossConfig(weight_mse=1, block_output=2, kl=3, structure_until=0.5, logits_from=0.75)
    loss = TranslationLoss(config, PaperArchitecture("basic_to_simple"))
    assert loss.weights(0) == {"weight_mse": 1, "block_output": 2}
    assert loss.weights(0.25) == {"weight_mse": 0.5, "block_output": 2}
    assert loss.weights(0.6) == {"block_output": 2}
    assert loss.weights(0.75) == {"block_output": 2, "kl": 3}


def test_weights_then_outputs_then_logits() -> None:
    config = LossConfig(
        weight_mse=1, block_output=2, head_input=4, kl=3, structure_until=0.5, outputs_from=0.25, logits_from=0.75
    )
    loss = TranslationLoss(config, PaperArchitecture("basic_to_simple"))
    assert loss.weights(0) == {"weight_mse": 1}
    assert loss.weights(0.25) == {"weight_mse": 0.5, "block_output": 2, "head_input": 4}
    assert loss.weights(0.6) == {"block_output": 2, "head_input": 4}
    assert loss.weights(0.75) == {"block_output": 2, "head_input": 4, "kl": 3}


@pytest.mark.parametrize(
    "fields",
    [
        {"outputs_from": 0.5},  # no term on outputs
        {"block_output": 1, "outputs_from": 0.5, "structure_until": 0.5},
        {"weight_mse": 0, "block_output": 1, "outputs_from": 0.5, "kl": 1},
        {"weight_mse": 0, "block_output": 1, "kl": 1, "logits_from": 0.5},
    ],
)
def test_a_schedule_with_a_loss_at_every_step(fields: dict[str, float]) -> None:
    loss = TranslationLoss(LossConfig(**fields), PaperArchitecture("basic_to_simple"))
    assert all(loss.weights(step / 100) for step in range(100))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_mse": 0}, "at least one loss weight must be above 0"),
        ({"structure_until": 0.5}, "no loss is left after structure_until=0.5"),
        ({"weight_mse": 0, "kl": 1, "logits_from": 0.5}, "some steps before logits_from=0.5 have no loss"),
        ({"kl": 1, "structure_until": 0.3, "logits_from": 0.5}, "some steps before logits_from=0.5 have no loss"),
        ({"weight_mse": 0, "head_input": 1, "outputs_from": 0.2}, "some steps before outputs_from=0.2 have no loss"),
        (
            {"block_output": 1, "kl": 1, "structure_until": 0.1, "outputs_from": 0.2, "logits_from": 0.3},
            "some steps before outputs_from=0.2 have no loss",
        ),
    ],
)
def test_a_step_without_loss_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LossConfig(**fields)
