"""What people register is used as what is bundled: an augmentation, a sampler, a dataset."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import optuna
import pytest
import torch

from kt_ray import register
from kt_ray.config import AugmentationConfig, DatasetConfig, SamplerConfig, StudyConfig, validate
from kt_ray.config.base import Frozen
from kt_ray.data import load_dataset
from kt_ray.errors import ConfigError, DataError
from kt_ray.networks import Architecture, State
from kt_ray.registry import registering
from kt_ray.search.samplers import build_sampler
from kt_ray.translation import augmentations
from kt_ray.zoo.members import Zoo


class Size(Frozen):
    size: int = 4


def noisy_stem(
    options: Size, members: State, weight: float, architecture: Architecture, generator: torch.Generator
) -> State:
    return {name: value * (1 + weight) if name.startswith("stem.") else value for name, value in members.items()}


def squares(options: Size) -> object:
    generator = np.random.default_rng(0)
    return [
        (generator.integers(0, 255, (count, 1, options.size, options.size), dtype=np.uint8), np.arange(count) % 3)
        for count in (30, 9)
    ]


@pytest.fixture(autouse=True)
def kinds() -> Iterator[None]:
    """The names of this test, and nothing of them after it."""
    with registering("code of a test"):
        register.augmentation("noisy_stem", options=Size)(noisy_stem)
        register.sampler("random_walk", options=Size)(lambda options, seed: optuna.samplers.RandomSampler(seed=seed))
        register.sampler("broken", options=Size)(lambda options, seed: seed)
        register.dataset("squares", options=Size)(squares)
        register.dataset("one_split", options=Size)(lambda options: [squares(options)[0], "none"])
    yield
    for kind in register.kinds():
        kind.remove("code of a test")


def test_an_augmentation(random_zoo: Zoo) -> None:
    config = AugmentationConfig(others={"noisy_stem": {"weight": 1.0}})
    moved = augmentations.augment(random_zoo.parameters, config, random_zoo.architecture, torch.Generator())
    torch.testing.assert_close(moved["stem.conv.weight"], 2 * random_zoo.parameters["stem.conv.weight"])


def test_a_sampler() -> None:
    sampler = build_sampler(SamplerConfig(name="random_walk"), seed=3)
    assert isinstance(sampler, optuna.samplers.RandomSampler)
    with pytest.raises(ConfigError, match="broken gives a int, expected Optuna's BaseSampler"):
        build_sampler(SamplerConfig(name="broken"), seed=3)


def test_a_dataset() -> None:
    dataset = load_dataset(DatasetConfig(name="squares", options={"size": 6}, selection_images=6))
    assert dataset.image_shape == (1, 6, 6)
    assert (len(dataset.train), len(dataset.selection), len(dataset.test), dataset.classes) == (24, 6, 9, 3)
    with pytest.raises(DataError, match=r"one_split: expected two pairs \(images, labels\)"):
        load_dataset(DatasetConfig(name="one_split", selection_images=6))


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("dataset", {"name": "squarse"}, "no dataset is called 'squarse'; near are squares"),
        ("dataset", {"name": "mnist5kk"}, "near are mnist5k"),
        ("dataset", {"name": "squares", "options": {"size": "big"}}, "size"),
        ("dataset", {"name": "squares", "options": {"sizes": 4}}, "dataset squares: options.sizes: unknown key"),
        ("search", {"sampler": {"name": "tpee"}}, "no sampler is called 'tpee'"),
        ("trial", {"translator": {"family": "mixr"}}, "no family is called 'mixr'; near are mixer"),
        ("trial", {"loss": {"terms": {"kll": {}}}}, "no loss is called 'kll'"),
        ("trial", {"augmentation": {"others": {"noisy": {}}}}, "no augmentation is called 'noisy'"),
    ],
)
def test_what_is_not_registered_is_a_fault_of_the_file(path: str, content: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(StudyConfig, {"name": "a", path: content})
    assert said in str(error.value)
