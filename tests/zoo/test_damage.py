"""A finished zoo whose files are damaged: told, never a traceback, never other numbers, and mended."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from kt_ray._io.checksum import KEY
from kt_ray.config import ActorConfig, MemberCounts, ZooConfig
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
from kt_ray.networks import PaperArchitecture
from kt_ray.zoo import index as indices
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore, zoo_names
from kt_ray.zoo.training.plan import FILE, ProbeMemory

CONFIG = ZooConfig(members=MemberCounts(train=8, selection=2, test=3), actors=ActorConfig(members_at_once=4))
SHARDS = "shard-*.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset, random_zoo: Zoo) -> Path:
    """A zoo of two shards."""
    store = ZooStore(str(tmp_path_factory.mktemp("whole") / "zoo"))
    store.create(CONFIG, "basic_to_simple", dataset)
    for rows in (torch.arange(6, 13), torch.arange(6)):
        part = random_zoo.take(rows)
        store.add(part.parameters, part.index)
    return Path(store.uri)


@pytest.fixture
def zoo(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "zoo"))


@pytest.fixture
def old_zoo(zoo: Path) -> Path:
    """As it was written before index and `zoo.json` carried checksums, and shards the definition."""
    definition = json.loads((zoo / "zoo.json").read_text())
    del definition[KEY]
    (zoo / "zoo.json").write_text(json.dumps(definition, indent=1))
    pq.write_table(ZooStore(str(zoo)).index(), zoo / "index.parquet")
    return zoo


def same(zoo: Zoo, other: Zoo) -> bool:
    """Whether two zoos are the same to the last bit, in the same order."""
    return (
        repr(zoo.index.to_pylist()) == repr(other.index.to_pylist())
        and zoo.architecture == other.architecture
        and zoo.parameters.keys() == other.parameters.keys()
        and all(
            value.numpy().tobytes() == other.parameters[name].numpy().tobytes()
            for name, value in zoo.parameters.items()
        )
    )


def damage(path: Path, chance: random.Random) -> str:
    """Damage a file in one of several ways; returns which."""
    content = path.read_bytes()
    kind = chance.choice(["flip", "flips", "truncate", "empty", "zeros", "repeat", "delete"])
    if kind == "delete":
        path.unlink()
        return kind
    if kind in ("flip", "flips"):
        changed = bytearray(content)
        for bit in chance.sample(range(8 * len(content)), 1 if kind == "flip" else 3):
            changed[bit // 8] ^= 1 << bit % 8
        content = bytes(changed)
    else:
        cut = chance.randrange(len(content))
        content = {
            "truncate": content[:cut],
            "empty": b"",
            "zeros": content[:cut] + b"\0" * (len(content) - cut),
            "repeat": content[:cut] + content[:cut],
        }[kind]
    path.write_bytes(content)
    return kind


def build(store: ZooStore, dataset: Dataset, random_zoo: Zoo) -> None:
    """What `build_zoo` does but for training: what is missing comes from the zoo that was there."""
    store.prepare(CONFIG, "basic_to_simple", dataset)
    store.mend()
    missing = {member.id for member in store.missing(CONFIG)}
    rows = [row for row, name in enumerate(random_zoo.index["id"].to_pylist()) if name in missing]
    if rows:
        part = random_zoo.take(torch.tensor(rows))
        store.add(part.parameters, part.index)


@pytest.mark.parametrize("seed", range(60))
def test_damage_is_told_and_mended(seed: int, zoo: Path, whole: Path, dataset: Dataset, random_zoo: Zoo) -> None:
    chance = random.Random(seed)
    victims = [[zoo / "zoo.json"], [zoo / "index.parquet"], sorted(zoo.glob(SHARDS)), sorted(zoo.iterdir())]
    for path in chance.sample(victims[seed % 4], 1 if seed % 4 < 3 else 2):
        if path.stat().st_size:  # not the lock
            damage(path, chance)
    before, store = ZooStore(str(whole)).read(), ZooStore(str(zoo))
    altered = any(
        not (zoo / path.name).exists() or (zoo / path.name).read_bytes() != path.read_bytes()
        for path in whole.iterdir()
    )
    assert bool(store.verify()) == altered
    if altered:
        with pytest.raises(ZooError):
            store.read()
    build(store, dataset, random_zoo)
    assert store.verify() == []
    assert same(store.read(), before)
    assert store.read().fingerprint == before.fingerprint


@pytest.mark.parametrize("seed", range(40))
def test_damage_of_a_zoo_without_checksums(
    seed: int, old_zoo: Path, whole: Path, dataset: Dataset, random_zoo: Zoo
) -> None:
    """Its index is compared with the rows in its shards; what its recipe was, only the study file can say."""
    chance = random.Random(seed)
    path = chance.choice(sorted(path for path in old_zoo.iterdir() if path.stat().st_size))
    damage(path, chance)
    before, store = ZooStore(str(whole)).read(), ZooStore(str(old_zoo))
    try:
        found = store.read()
    except ZooError:
        assert store.verify()
    else:
        assert same(found, before)
    with suppress(ZooError):  # it seems to be another zoo than the one that is asked for
        build(store, dataset, random_zoo)
        assert store.verify() == []
        assert same(store.read(), before)


def test_a_zoo_without_checksums_is_read_and_has_them_once_mended(old_zoo: Path, whole: Path, dataset: Dataset) -> None:
    store, before = ZooStore(str(old_zoo)), ZooStore(str(whole)).read()
    assert not store.has_checksums()
    assert store.verify() == []
    assert same(store.read(), before)
    assert store.read().fingerprint == before.fingerprint
    assert store.mend() == []
    assert store.has_checksums()
    assert same(store.read(), before)
    assert store.create(CONFIG, "basic_to_simple", dataset) == []


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("classes", 11),
        ("image_shape", [1, 28, 29]),
        ("channels", 6_000_000),
        ("channels", 10**12),
        ("classes", 10**30),
        ("seed", "one"),
    ],
)
def test_sizes_that_the_shards_have_not(entry: str, value: object, old_zoo: Path) -> None:
    definition = json.loads((old_zoo / "zoo.json").read_text())
    (definition if entry in definition else definition["network"])[entry] = value
    (old_zoo / "zoo.json").write_text(json.dumps(definition))
    store = ZooStore(str(old_zoo))
    assert store.verify()
    with pytest.raises(ZooError):
        store.read()


def test_shards_without_a_definition_are_a_damaged_zoo(zoo: Path, dataset: Dataset) -> None:
    (zoo / "zoo.json").unlink()
    (zoo.parent / FILE).write_text("{}")
    (zoo.parent / "empty").mkdir()
    store = ZooStore(str(zoo))
    assert zoo_names(zoo.parent) == ["zoo"]
    assert store.exists()
    (line,) = store.verify()
    assert "zoo.json is missing" in line
    assert "kt-ray zoo build" in line
    assert store.prepare(CONFIG, "basic_to_simple", dataset) == []
    assert store.verify() == []


@pytest.mark.parametrize("files", [(SHARDS,), (SHARDS, "*.parquet"), (SHARDS, "*.parquet", "zoo.json")])
@pytest.mark.parametrize("gone", [True, False])
def test_a_zoo_of_which_nothing_is_whole_is_built_anew(
    files: tuple[str, ...], gone: bool, zoo: Path, whole: Path, dataset: Dataset, random_zoo: Zoo
) -> None:
    for path in [path for pattern in files for path in sorted(zoo.glob(pattern))]:
        if gone:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1])
    store = ZooStore(str(zoo))
    build(store, dataset, random_zoo)
    assert store.verify() == []
    assert same(store.read(), ZooStore(str(whole)).read())


def test_an_index_without_a_column_is_made_anew(zoo: Path, whole: Path, dataset: Dataset, random_zoo: Zoo) -> None:
    store = ZooStore(str(zoo))
    (zoo / "index.parquet").write_bytes(indices.encode(store.index().drop_columns(["split"])))
    assert store.verify()
    build(store, dataset, random_zoo)
    assert same(store.read(), ZooStore(str(whole)).read())


def test_a_zoo_made_anew_from_shards_is_not_taken_for_another(zoo: Path, dataset: Dataset) -> None:
    (zoo / "zoo.json").unlink()
    with pytest.raises(ZooError, match="seed"):
        ZooStore(str(zoo)).prepare(CONFIG.model_copy(update={"seed": 3}), "basic_to_simple", dataset)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[",
        "[]",
        '"x"',
        "{}",
        '{"KEY": 3}',
        '{"KEY": {"source": "fused", "target": "fused", "at_once": 0}}',
        '{"KEY": {"source": "fused", "target": "fused", "at_once": true}}',
        '{"KEY": {"source": "os.system"}}',
        '{"KEY": {"sauce": "fused"}}',
        "\udcff",
        "[" * 100_000,
    ],
)
def test_a_cache_of_plans_that_is_none_is_thrown_away(content: str, tmp_path: Path) -> None:
    from kt_ray.zoo.training.members import Plan
    from kt_ray.zoo.training.plan import runs

    memory = ProbeMemory(str(tmp_path / "zoo"))
    (tmp_path / FILE).write_bytes(content.replace("KEY", "key").encode(errors="surrogateescape"))
    found = memory.recall("key")
    assert found is None or not runs(found, PaperArchitecture("basic_to_simple"), "cpu", 4)
    memory.keep("key", Plan())
    assert memory.recall("key") == Plan()
    assert runs(Plan(), PaperArchitecture("basic_to_simple"), "cpu", 4)


def test_a_store_that_cannot_be_reached_is_one_line() -> None:
    with pytest.raises(ZooError) as error:
        ZooStore(
            "s3://bucket/zoo?scheme=http&endpoint_override=127.0.0.1:9&connect_timeout=1&request_timeout=1"
        ).verify()
    assert "\n" not in str(error.value)


def test_no_thread_of_arrows_is_left(zoo: Path) -> None:
    """Arrow's threads can abort a process that ends soon after they started."""
    program = (
        "import os, sys, pyarrow, torch; torch.set_num_threads(1); before = len(os.listdir('/proc/self/task'));"
        "from kt_ray.zoo.store import ZooStore; store = ZooStore(sys.argv[1]);"
        "assert store.verify() == []; store.read(); store.mend(); store.info();"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(zoo)], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "0"
