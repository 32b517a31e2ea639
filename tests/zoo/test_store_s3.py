"""The store on S3, as a local server speaks it."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator

import pyarrow as pa
import pytest
import torch

from kt_ray.config import ZooConfig
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
from kt_ray.zoo import filesystem
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore

moto = pytest.importorskip("moto.server", reason="moto, a local S3 server, is not installed")


@pytest.fixture
def uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A zoo's URI in a bucket of a fresh server on loopback."""
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"s3://bucket/zoos/digits?scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true"
    server.stop()


def test_a_zoo_on_s3_is_read_mended_and_damage_is_named(uri: str, dataset: Dataset, random_zoo: Zoo) -> None:
    store = ZooStore(uri)
    assert not store.exists()
    store.create(ZooConfig(), "basic_to_simple", dataset)
    for rows in (torch.arange(6), torch.arange(3, 13)):
        part = random_zoo.take(rows)
        store.add(part.parameters, part.index)
    again = ZooStore(uri)
    zoo = again.read()
    assert len(zoo) == 13
    assert again.verify() == []
    assert again.info().bytes > 13 * 28_000

    shard = again.index()["shard"][0].as_py()
    content = bytearray(again.files.read(shard))
    content[-1] ^= 1
    again.files.write(shard, bytes(content))
    with pytest.raises(ZooError, match=f"bucket/zoos/digits/{shard} is damaged"):
        ZooStore(uri).read()
    assert len(store.mend()) == 1
    part = random_zoo.take(torch.arange(13))
    store.add(part.parameters, part.index)
    mended = store.read()
    assert all(torch.equal(mended.parameters[name], zoo.parameters[name]) for name in zoo.parameters)


def test_two_builders_on_one_zoo_lose_nothing(uri: str, dataset: Dataset, random_zoo: Zoo) -> None:
    """Two processes add the same ten members one by one, in opposite orders, beside each other."""
    store = ZooStore(uri)
    store.create(ZooConfig(), "basic_to_simple", dataset)
    store.add(random_zoo.parameters, random_zoo.index)
    context = multiprocessing.get_context("spawn")
    builders = [context.Process(target=_add_ten, args=(uri, backwards)) for backwards in (False, True)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(300)
    assert [builder.exitcode for builder in builders] == [0, 0]
    ids = store.index()["id"].to_pylist()
    assert len(ids) == len(set(ids)) == len(random_zoo) + 10
    assert store.verify() == []
    assert not store.files.filesystem.get_file_info([store.files.path(filesystem.CLAIMS + "/x")])[0].is_file


def _add_ten(uri: str, backwards: bool) -> None:
    store = ZooStore(uri)
    part = store.read("selection").take(torch.arange(1))
    for number in reversed(range(10)) if backwards else range(10):
        rows = part.index.set_column(0, "id", pa.array([f"train-{1000 + number:06d}"]))
        store.add(part.parameters, rows)


class TestLock:
    def test_one_at_a_time(self, uri: str) -> None:
        inside, most = [], []

        def enter(name: int) -> None:
            files = ZooStore(uri).files
            for _ in range(3):
                with files.lock() as check:
                    inside.append(name)
                    most.append(len(inside))
                    time.sleep(0.05)
                    check()
                    inside.remove(name)

        threads = [threading.Thread(target=enter, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == [1] * 9

    def test_the_claim_of_a_process_that_died_ends(self, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(filesystem, "LEASE_SECONDS", 2.0)
        files = ZooStore(uri).files
        files.filesystem.create_dir(files.path(filesystem.CLAIMS), recursive=True)
        began = time.monotonic()
        files._put(files.path(f"{filesystem.CLAIMS}/dead"))
        with files.lock():
            assert time.monotonic() - began > 1.0

    def test_who_holds_it_for_longer_than_the_lease_renews_it(self, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(filesystem, "LEASE_SECONDS", 6.0)
        monkeypatch.setattr(filesystem, "WAIT_SECONDS", 9.0)
        with ZooStore(uri).files.lock() as check:
            with pytest.raises(ZooError, match="by others"), ZooStore(uri).files.lock():
                raise AssertionError("two are inside")
            check()

    def test_who_lost_it_does_not_write(self, uri: str) -> None:
        files = ZooStore(uri).files
        with files.lock() as check:
            (claim,) = files._infos(filesystem.fs.FileSelector(files.path(filesystem.CLAIMS)))
            files._remove(claim.path)
            with pytest.raises(ZooError, match="taken over"):
                check()
