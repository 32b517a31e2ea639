from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kt_ray.config import MemberCounts, ZooConfig
from kt_ray.data import Dataset
from kt_ray.networks import PaperArchitecture
from kt_ray.zoo.members import Zoo, members_of
from kt_ray.zoo.store import ZooStore
from kt_ray.zoo.training import batching
from kt_ray.zoo.training.batching import Buffer, batches_of, bytes_of


def test_batches_are_even_and_enough_for_all_actors() -> None:
    members = members_of(0, MemberCounts(train=11, selection=1, test=1))
    assert [len(batch) for batch in batches_of(members, 8, 2)] == [6, 7]
    assert [len(batch) for batch in batches_of(members, 4, 2)] == [3, 3, 4, 3]
    assert [len(batch) for batch in batches_of(members[:1], 8, 2)] == [1]
    assert [member for batch in batches_of(members, 3, 2) for member in batch] == members


def test_bytes_of_a_row() -> None:
    assert bytes_of(PaperArchitecture("basic_to_simple")) == 4 * (54 + 24 + 648 + 48 + 324 + 72 + 48 + 5890)


def test_results_wait_until_they_are_many_or_old(
    tmp_path: Path, dataset: Dataset, random_zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ZooStore(str(tmp_path / "zoo"))
    store.create(ZooConfig(), "basic_to_simple", dataset)
    buffer = Buffer(store)
    parts = [random_zoo.take(torch.tensor([row])) for row in range(5)]
    buffer.add(parts[0].parameters, parts[0].index)
    assert store.present() == set()
    monkeypatch.setattr(batching, "SHARD_BYTES", 3 * bytes_of(random_zoo.architecture))
    for part in parts[1:4]:
        buffer.add(part.parameters, part.index)
    assert (len(store.present()), store.info().shards) == (3, 1)
    buffer.flush()
    assert (len(store.present()), store.info().shards) == (4, 2)
    monkeypatch.setattr(batching, "SHARD_SECONDS", 0.0)
    buffer.add(parts[4].parameters, parts[4].index)
    assert len(store.present()) == 5
