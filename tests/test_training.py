"""A translator learns; a continued training gives the same bits; what cannot be continued says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kt_ray.config import TrialConfig, validate
from kt_ray.data import Dataset
from kt_ray.errors import CheckpointError, ZooError
from kt_ray.training import TranslatorTraining, learning_rate
from kt_ray.zoo.members import Zoo


def config(**fields: object) -> TrialConfig:
    content: dict[str, object] = {
        "translator": {"family": "mixer", "mixer": {"size": "tiny"}},
        "augmentation": {
            "channel_permutation": True,
            "hidden_permutation": True,
            "mask": {"probability": 0.1},
            "noise": {"std": 0.01, "sides": "both"},
        },
        "loss": {"weight_mse": 1, "block_output": 1, "images": 4},
        "training": {"epochs": 4, "batch_size": 4, "steps_per_epoch": 2},
    }
    return validate(TrialConfig, content | fields)


def test_loss_falls(random_zoo: Zoo, dataset: Dataset) -> None:
    plain = config(
        augmentation={}, loss={}, training={"epochs": 3, "batch_size": 8, "steps_per_epoch": 40, "learning_rate": 3e-3}
    )
    training = TranslatorTraining(plain, random_zoo, dataset)
    losses = []
    while not training.finished:
        metrics = training.run_epoch()
        losses.append(metrics["loss"])
    assert losses[2] < 0.5 * losses[0]
    assert set(metrics) == {"loss", "accuracy_mean", "accuracy_min", "accuracy_max", "seconds", "parameters"}
    assert 0 <= metrics["accuracy_min"] <= metrics["accuracy_mean"] <= metrics["accuracy_max"] <= 1


def test_continues_to_the_same_bits(random_zoo: Zoo, dataset: Dataset, tmp_path: Path) -> None:
    """A checkpoint after two epochs and two more give the file that four at once give, whatever ran between."""
    whole = TranslatorTraining(config(), random_zoo, dataset)
    metrics = [whole.run_epoch() for _ in range(4)]
    whole.save(tmp_path / "whole")

    first = TranslatorTraining(config(), random_zoo, dataset)
    first.run_epoch()
    first.run_epoch()
    first.save(tmp_path / "half")
    torch.rand(7)
    second = TranslatorTraining(config(), random_zoo, dataset)
    second.load(tmp_path / "half")
    assert second.epoch == 2
    resumed = [second.run_epoch() for _ in range(2)]
    second.save(tmp_path / "resumed")
    for name in ("loss", "accuracy_mean"):
        assert [row[name] for row in resumed] == [row[name] for row in metrics[2:]]
    expected, actual = load_file(tmp_path / "whole"), load_file(tmp_path / "resumed")
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_leaves_the_global_generator_alone(random_zoo: Zoo, dataset: Dataset) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    TranslatorTraining(config(), random_zoo, dataset).run_epoch()
    assert torch.equal(torch.rand(3), expected)


def test_refuses_the_checkpoint_of_another_trial(random_zoo: Zoo, dataset: Dataset, tmp_path: Path) -> None:
    TranslatorTraining(config(), random_zoo, dataset).save(tmp_path / "one")
    with pytest.raises(CheckpointError, match="belongs to another trial"):
        TranslatorTraining(config(seed=1), random_zoo, dataset).load(tmp_path / "one")


def test_refuses_a_torn_checkpoint(random_zoo: Zoo, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "torn").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        TranslatorTraining(config(), random_zoo, dataset).load(tmp_path / "torn")


def test_needs_members(random_zoo: Zoo, dataset: Dataset) -> None:
    with pytest.raises(ZooError, match="no training member"):
        TranslatorTraining(config(), random_zoo.where("test"), dataset)


def test_learning_rate() -> None:
    settings = validate(TrialConfig, {"training": {"learning_rate": 1.0, "warmup": 0.1}}).training
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)
