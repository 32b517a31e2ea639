"""The store on S3, as a local server speaks it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kt_ray.config import ZooConfig
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
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
