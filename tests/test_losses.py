"""Losses are zero where they should be, and weigh what their names say."""

from __future__ import annotations

import pytest
import torch

from kt_ray.config import LossConfig, MemberCounts, NetworkConfig
from kt_ray.data import Dataset, as_float
from kt_ray.losses import TranslationLoss, relative_error, weight_mse
from kt_ray.networks import Architecture
from kt_ray.translators.tokens import fold_batch_norm
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
    architecture = Architecture("basic_to_biased", NetworkConfig(target_hidden=6))
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
    architecture = Architecture("basic_to_simple")
    weights = TranslationLoss(LossConfig(), architecture)
    functional = TranslationLoss(LossConfig(weight_mse=0, block_output=1), architecture)
    assert (weights.needs_images, weights.needs_targets) == (False, True)
    assert (functional.needs_images, functional.needs_targets) == (True, False)
