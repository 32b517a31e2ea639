from __future__ import annotations

import dataclasses
import json
import multiprocessing
import resource
import signal
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from kt_ray.config import MemberCounts, RecipeConfig, ZooConfig
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore

CONFIG = ZooConfig(members=MemberCounts(train=8, selection=2, test=3))


@pytest.fixture
def store(tmp_path: Path, dataset: Dataset, random_zoo: Zoo) -> ZooStore:
    """A store with the random zoo in two shards, out of order."""
    store = ZooStore(str(tmp_path / "zoo"))
    store.create(CONFIG, "basic_to_simple", dataset)
    for rows in (torch.arange(6, 13), torch.arange(6)):
        part = random_zoo.take(rows)
        store.add(part.parameters, part.index)
    return store


def shards(store: ZooStore) -> list[Path]:
    return sorted(Path(store.uri).glob("shard-*.safetensors"))


def test_what_was_added_is_read_in_the_order_of_ids(store: ZooStore, random_zoo: Zoo) -> None:
    zoo = store.read()
    assert zoo.index["id"].to_pylist() == sorted(random_zoo.index["id"].to_pylist())
    for row, member_id in enumerate(zoo.index["id"].to_pylist()):
        original = random_zoo.index["id"].to_pylist().index(member_id)
        assert all(torch.equal(zoo.parameters[n][row], random_zoo.parameters[n][original]) for n in zoo.parameters)
    assert len(shards(store)) == 2
    assert store.present() == set(random_zoo.index["id"].to_pylist())
    assert zoo.architecture == random_zoo.architecture


def test_tensors_are_read_in_the_order_of_their_names(store: ZooStore) -> None:
    names = list(store.read().parameters)
    assert names == sorted(names)  # safetensors orders them at random, and a loss sums over them


def test_one_split_is_read(store: ZooStore) -> None:
    assert store.read("selection").index["split"].to_pylist() == ["selection"] * 2


def test_a_zoo_whose_index_lacks_newer_columns_is_read_and_grows(store: ZooStore, random_zoo: Zoo) -> None:
    row = random_zoo.take(torch.tensor([0]))
    named = row.index.set_column(0, "id", pa.array(["train-000099"])).append_column("device", pa.array(["a GPU"]))
    store.add(row.parameters, named)
    assert store.read().index["device"].to_pylist() == [None] * len(random_zoo) + ["a GPU"]
    assert store.verify() == []


def test_members_already_present_are_not_added_twice(store: ZooStore, random_zoo: Zoo) -> None:
    store.add(random_zoo.parameters, random_zoo.index)
    assert len(store.read()) == len(random_zoo)
    assert len(shards(store)) == 2


def test_a_shard_counts_only_when_the_index_says_so(store: ZooStore, random_zoo: Zoo) -> None:
    (Path(store.uri) / "shard-0000.safetensors").write_bytes(b"left by a killed build")
    assert len(store.read()) == len(random_zoo)
    assert store.verify() == []


def test_fingerprint_does_not_depend_on_the_shards(store: ZooStore, random_zoo: Zoo, dataset: Dataset) -> None:
    other = ZooStore(store.uri + "-other")
    other.create(CONFIG, "basic_to_simple", dataset)
    other.add(random_zoo.parameters, random_zoo.index)
    assert other.read().fingerprint == store.read().fingerprint
    assert other.read("train").fingerprint != store.read().fingerprint


def test_a_flipped_bit_is_named_and_mended(store: ZooStore, random_zoo: Zoo) -> None:
    damaged = shards(store)[0]
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ZooError, match=f"{damaged.name} is damaged: its SHA-256 is not the index's; `kt-ray"):
        store.read()
    assert store.verify() == [f"{damaged} is damaged: its SHA-256 is not the index's"]
    assert store.mend() == [f"{damaged} is damaged: its SHA-256 is not the index's"]
    assert store.verify() == []
    assert 0 < len(store.read()) < len(random_zoo)


def test_a_missing_shard_is_named(store: ZooStore) -> None:
    lost = shards(store)[0]
    lost.unlink()
    assert store.verify() == [f"{lost} is missing"]
    with pytest.raises(ZooError, match=r"is in the index of .* but is missing"):
        store.read()


def test_a_truncated_index_is_named(store: ZooStore) -> None:
    index = Path(store.uri) / "index.parquet"
    index.write_bytes(index.read_bytes()[:-20])
    (line,) = store.verify()
    assert line.startswith(f"{index} is damaged")


def test_a_damaged_index_is_made_anew_from_the_shards(store: ZooStore, random_zoo: Zoo) -> None:
    before = store.read()
    index = Path(store.uri) / "index.parquet"
    for damage in (index.read_bytes()[:-20], b""):
        index.write_bytes(damage)
        (Path(store.uri) / "shard-0123456789abcdef.safetensors").write_bytes(b"not what its name says")
        (line,) = store.mend()
        assert "index.parquet is damaged" in line
        after = store.read()
        assert after.index["id"].equals(before.index["id"])
        assert after.index.schema == before.index.schema
        assert all(torch.equal(after.parameters[name], before.parameters[name]) for name in before.parameters)
    assert store.mend() == []


def test_mending_takes_out_what_a_damaged_shard_held(store: ZooStore, random_zoo: Zoo) -> None:
    lost, cut = shards(store)
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    (Path(store.uri) / ".shard-1.safetensors.abc.tmp").write_bytes(b"left by a killed build")
    assert len(store.mend()) == 2
    assert store.present() == set()
    assert not list(Path(store.uri).glob(".shard*"))


def test_a_stream_is_the_zoo_in_parts(store: ZooStore) -> None:
    whole = store.read()
    parts = list(store.stream())
    assert sorted(len(part) for part in parts) == [6, 7]
    for part in parts:
        rows = [whole.index["id"].to_pylist().index(member_id) for member_id in part.index["id"].to_pylist()]
        assert all(torch.equal(part.parameters[name], whole.parameters[name][rows]) for name in whole.parameters)


def test_a_full_disk_is_said_and_what_is_there_stays_whole(
    store: ZooStore, random_zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLIMIT_FSIZE stands in for the small disk of the slow test: the write fails in the middle of a file."""
    part = random_zoo.take(torch.arange(1))
    more = part.index.set_column(0, "id", pa.array(["train-999999"]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(ZooError, match=r"shard-.* cannot be written \(File too large\); .* then run it again"):
            store.add(part.parameters, more)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert store.verify() == []
    assert len(store.read()) == len(random_zoo)
    assert not list(Path(store.uri).glob(".*tmp"))


def test_two_writers_at_once_double_nothing(store: ZooStore, random_zoo: Zoo) -> None:
    """Two processes add the same thirty members one by one, in opposite orders."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add_thirty, args=(store.uri, backwards)) for backwards in (False, True)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(300)
    assert [writer.exitcode for writer in writers] == [0, 0]
    ids = store.index()["id"].to_pylist()
    assert len(ids) == len(set(ids)) == len(random_zoo) + 30
    assert store.verify() == []


def _add_thirty(uri: str, backwards: bool) -> None:
    store = ZooStore(uri)
    part = store.read("selection").take(torch.arange(1))
    for number in reversed(range(30)) if backwards else range(30):
        rows = part.index.set_column(0, "id", pa.array([f"train-{1000 + number:06d}"]))
        store.add(part.parameters, rows)


def test_another_recipe_pair_or_dataset_is_refused(store: ZooStore, dataset: Dataset) -> None:
    store.create(CONFIG, "basic_to_simple", dataset)
    with pytest.raises(ZooError, match='has pair="basic_to_simple", but "basic_to_mlp" was asked for; choose another'):
        store.create(CONFIG, "basic_to_mlp", dataset)
    other = CONFIG.model_copy(update={"recipe": RecipeConfig(horizontal_flip=False)})
    with pytest.raises(ZooError, match=r'"horizontal_flip": true.* but .*"horizontal_flip": false. was asked'):
        store.create(other, "basic_to_simple", dataset)


def test_nothing_there_is_said(tmp_path: Path, dataset: Dataset) -> None:
    store = ZooStore(str(tmp_path / "none"))
    assert not store.exists()
    with pytest.raises(ZooError, match=r"no zoo at .*; `kt-ray zoo build"):
        store.read()
    store.create(CONFIG, "basic_to_simple", dataset)
    assert store.present() == set()
    with pytest.raises(ZooError, match="has no members"):
        store.read()


def test_no_temporary_file_is_left_where_nothing_can_be_written(store: ZooStore, random_zoo: Zoo) -> None:
    assert not list(Path(store.uri).glob(".*tmp"))


def test_info_counts(store: ZooStore) -> None:
    info = store.info()
    assert info.members == {"train": 8, "selection": 2, "test": 3}
    assert info.bytes == sum(path.stat().st_size for path in shards(store))
    assert info.target_accuracy is None  # of untrained networks
    assert (info.brief, info.device_hours, sum(info.source_histogram)) == (0, 0.0, 0)
    assert json.loads(json.dumps(info.to_dict()))["rows"] == 13


def test_info_for_people_shows_filled_bins_and_set_options(store: ZooStore) -> None:
    info = dataclasses.replace(
        store.info(), source_accuracy=0.92, source_histogram=(0,) * 18 + (3, 1), recipe={"shift": 0, "snapshots": []}
    )
    facts = {row[""]: row["value"] for row in info.facts()}
    assert facts["source accuracy"] == "mean 0.9200; 3 in 0.90–0.95, 1 in 0.95–1.00"
    assert facts["target accuracy"] == "-"
    assert facts["recipe"] == "shift 0"


def test_a_pyarrow_uri_works_like_a_path(store: ZooStore) -> None:
    by_uri = ZooStore(f"file://{store.uri}")
    assert by_uri.read().fingerprint == store.read().fingerprint
    assert by_uri.present() == store.present()


def test_a_bad_uri_is_refused() -> None:
    with pytest.raises(ZooError, match=r"is no directory or pyarrow\.fs URI"):
        ZooStore("nonsense://bucket/zoo")


def test_index_columns(store: ZooStore) -> None:
    assert store.index().schema.field("shard").type == pa.string()
    assert {"row", "sha256"} <= set(store.index().column_names)
    assert "shard" not in store.read().index.column_names
