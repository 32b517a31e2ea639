from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kt_ray.config import RecipeConfig, ZooConfig
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.merging import merge_zoos
from kt_ray.zoo.store import ZooStore


def make(path: Path, config: ZooConfig, dataset: Dataset, part: Zoo) -> ZooStore:
    store = ZooStore(str(path))
    store.create(config, "basic_to_simple", dataset)
    store.add(part.parameters, part.index)
    return store


def test_members_of_both_are_there_once(tmp_path: Path, dataset: Dataset, random_zoo: Zoo) -> None:
    first = make(tmp_path / "a", ZooConfig(), dataset, random_zoo.take(torch.arange(8)))
    second = make(tmp_path / "b", ZooConfig(), dataset, random_zoo.take(torch.arange(5, 13)))
    other = make(tmp_path / "c", ZooConfig(seed=7), dataset, random_zoo.take(torch.arange(2)))
    merged = ZooStore(str(tmp_path / "merged"))
    assert merge_zoos([first, second, other], merged) == 15
    zoo = merged.read()
    ids = zoo.index["id"].to_pylist()
    assert sum(member_id.endswith("-of-7") for member_id in ids) == 2
    assert merged.verify() == []
    original = random_zoo.index["id"].to_pylist()
    for row, member_id in enumerate(ids):
        value = random_zoo.parameters["head.linear.weight"][original.index(member_id.removesuffix("-of-7"))]
        assert torch.equal(zoo.parameters["head.linear.weight"][row], value)
    assert merge_zoos([first], merged) == 0


def test_zoos_of_two_recipes_are_refused(tmp_path: Path, dataset: Dataset, random_zoo: Zoo) -> None:
    first = make(tmp_path / "a", ZooConfig(), dataset, random_zoo)
    second = make(tmp_path / "b", ZooConfig(recipe=RecipeConfig(horizontal_flip=False)), dataset, random_zoo)
    with pytest.raises(ZooError, match=r"b has another recipe than .*a; only zoos of one recipe can be merged"):
        merge_zoos([second], first)
    with pytest.raises(ZooError, match="no zoo to merge"):
        merge_zoos([], first)
