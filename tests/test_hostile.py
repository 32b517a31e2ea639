"""Files from someone else that mean harm: each is refused with a KTError, and no code in it runs.

SECURITY.md says what these tests stand for. The payload of each is a pickle that makes a directory.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import sqlite3
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pytest
import torch

from kt_ray.config import (
    MemberCounts,
    SamplerConfig,
    Source,
    StudyConfig,
    TranslatorConfig,
    TrialConfig,
    ZooConfig,
    validate_source,
)
from kt_ray.data import Dataset
from kt_ray.errors import CheckpointError, ConfigError, KTError, StudyError, ZooError
from kt_ray.networks import PaperArchitecture
from kt_ray.networks.checkpoint import read_state
from kt_ray.networks.state_file import read_written, write_state
from kt_ray.search.samplers import build_sampler
from kt_ray.search.storage import open_storage
from kt_ray.search.study import SearchStudy
from kt_ray.translation.checkpoint import load_translator, save_translator
from kt_ray.translation.training import TranslatorTraining
from kt_ray.translation.translator import build_translator
from kt_ray.zoo.index import encode
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore


class Payload:
    """Unpickled, makes the directory that it is given."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture(autouse=True)
def canary(tmp_path: Path) -> Iterator[Path]:
    """Where a payload that ran would leave its mark; the payload itself is proved to work."""
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.is_dir()
    path.rmdir()
    yield path
    assert not path.exists(), "code from a file was run"


def torch_zip(canary: Path) -> bytes:
    """A file as `torch.save` writes, its pickle replaced."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"stem.0.weight": Payload(canary)}))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def torch_saved(canary: Path) -> bytes:
    """What `torch.save` makes of a state_dict with a payload beside a tensor."""
    buffer = io.BytesIO()
    torch.save({"stem.0.weight": torch.zeros(1), "more": Payload(canary)}, buffer)
    return buffer.getvalue()


def header(content: dict[str, Any] | bytes, length: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file with the given header."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


SAFETENSORS = {
    "a pickle": lambda canary: pickle.dumps(Payload(canary)),
    "a torch archive": torch_zip,
    "nothing": lambda _: b"",
    "a header of 2^63 bytes": lambda _: header(b"{}", 1 << 63),
    "a header beyond the end": lambda _: header(b"{}", 1 << 20),
    "a tensor beyond the end": lambda _: header(
        {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    ),
    "a shape that overflows": lambda _: header(
        {"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 4]}}, data=b"\0" * 4
    ),
    "an unknown type": lambda _: header({"a": {"dtype": "OBJ", "shape": [1], "data_offsets": [0, 8]}}, data=b"\0" * 8),
    "a header that is no JSON": lambda _: header(b"\x80\x04."),
    "a header nested deeply": lambda _: header(b"[" * 100_000),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_a_hostile_safetensors_file(kind: str, tmp_path: Path, canary: Path) -> None:
    file = tmp_path / "network.safetensors"
    file.write_bytes(SAFETENSORS[kind](canary))
    with pytest.raises(CheckpointError):
        read_state(file)
    with pytest.raises(CheckpointError):
        load_translator(file)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("make", [torch_zip, torch_saved, lambda canary: pickle.dumps(Payload(canary), protocol=2)])
def test_a_hostile_torch_checkpoint(make: Callable[[Path], bytes], tmp_path: Path, canary: Path) -> None:
    file = tmp_path / "network.pt"
    file.write_bytes(make(canary))
    with pytest.raises(CheckpointError):
        read_state(file)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("config", "not JSON"),
        ("config", json.dumps({"family": "os.system"})),
        ("config", json.dumps({"family": "mixer", "__class__": "os.system"})),
        ("architecture", "[]"),
        ("architecture", json.dumps({"pair": "__import__", "network": {}, "image_shape": [1, 28, 28], "classes": 10})),
        (
            "architecture",
            json.dumps(
                {"pair": "basic_to_simple", "network": {"channels": -1}, "image_shape": [1, 28, 28], "classes": 10}
            ),
        ),
        ("architecture", {"image_shape": [1, 10**6, 10**9]}),
        ("architecture", {"image_shape": [1, 28]}),
        ("architecture", {"image_shape": [0, 28, 28]}),
        ("architecture", {"image_shape": None}),
        ("architecture", {"classes": 10**30}),
        ("architecture", {"classes": "ten"}),
        ("architecture", {"network": {"channels": 10**6}}),
        ("config", json.dumps({"family": "neuron_transformer", "neuron_transformer": {"depth": 10**9}})),
        ("config", json.dumps({"family": "neuron_transformer", "neuron_transformer": {"width": 10**6}})),
        ("extra", "{"),
        ("extra", "[]"),
        ("extra", "null"),
        ("extra", '{"metrics": 3}'),
        ("format", "pickle"),
    ],
)
def test_a_translator_whose_description_lies(entry: str, value: str | dict[str, Any], tmp_path: Path) -> None:
    config, architecture = TranslatorConfig(family="neuron_transformer"), PaperArchitecture("basic_to_simple")
    file = tmp_path / "translator.safetensors"
    save_translator(file, build_translator(config, architecture), config, architecture, {})
    tensors, metadata = read_written(file)
    if isinstance(value, dict):
        value = json.dumps(json.loads(metadata[entry]) | value)
    write_state(file, tensors, metadata | {entry: value})  # with a checksum that holds
    with pytest.raises(CheckpointError):
        load_translator(file)


@pytest.mark.parametrize("kind", ["a pickle", "a torch archive", "a header beyond the end"])
def test_a_hostile_checkpoint_of_a_trial(
    kind: str, tmp_path: Path, canary: Path, random_zoo: Zoo, dataset: Dataset
) -> None:
    training = TranslatorTraining(TrialConfig(), random_zoo, dataset)
    file = tmp_path / "training.safetensors"
    file.write_bytes(SAFETENSORS[kind](canary))
    with pytest.raises(CheckpointError):
        training.load(file)


@pytest.fixture
def zoo(tmp_path: Path, dataset: Dataset, random_zoo: Zoo) -> ZooStore:
    """A whole zoo, to be spoilt."""
    store = ZooStore(str(tmp_path / "zoo"))
    store.create(ZooConfig(members=MemberCounts(train=8, selection=2, test=3)), "basic_to_simple", dataset)
    store.add(random_zoo.parameters, random_zoo.index)
    return store


def write_index(store: ZooStore, index: pa.Table) -> None:
    """Write `index` with a checksum that holds: whoever means harm can compute one."""
    (Path(store.uri) / "index.parquet").write_bytes(encode(index))


def replace_column(store: ZooStore, name: str, value: Any) -> None:
    """Write the index with one column of another value in every row."""
    index = store.index()
    index = index.set_column(index.schema.get_field_index(name), name, pa.array([value] * len(index)))
    write_index(store, index)


def test_a_zoo_whose_shard_is_a_pickle(zoo: ZooStore, canary: Path) -> None:
    import hashlib

    content = pickle.dumps(Payload(canary))
    shard = zoo.index()["shard"][0].as_py()
    (Path(zoo.uri) / shard).write_bytes(content)
    with pytest.raises(ZooError, match="damaged"):
        zoo.read()
    replace_column(zoo, "sha256", hashlib.sha256(content).hexdigest())  # the index is the attacker's too
    with pytest.raises(KTError):
        zoo.read()


def test_a_zoo_that_names_files_outside_itself(zoo: ZooStore, tmp_path: Path) -> None:
    import hashlib

    shard = zoo.index()["shard"][0].as_py()
    content = (Path(zoo.uri) / shard).read_bytes()
    (tmp_path / "elsewhere.safetensors").write_bytes(content)
    assert hashlib.sha256(content).hexdigest() == zoo.index()["sha256"][0].as_py()
    replace_column(zoo, "shard", "../elsewhere.safetensors")
    with pytest.raises(ZooError):
        zoo.read()
    assert zoo.verify()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("zoo.json", b"\x80\x04."),
        ("zoo.json", b"[]"),
        ("zoo.json", b"[" * 200_000),
        ("zoo.json", json.dumps({"schema_version": 1}).encode()),
        (
            "zoo.json",
            json.dumps(
                {"schema_version": 1, "pair": "os.system", "network": {}, "image_shape": [1, 28, 28], "classes": 10}
            ).encode(),
        ),
        ("index.parquet", b"PAR1"),
        ("index.parquet", b"PAR1" + b"\xff" * 64 + b"PAR1"),
    ],
)
def test_a_zoo_whose_description_lies(zoo: ZooStore, name: str, content: bytes) -> None:
    (Path(zoo.uri) / name).write_bytes(content)
    with pytest.raises(ZooError):
        zoo.read()


def test_a_zoo_whose_index_lacks_columns_or_points_nowhere(zoo: ZooStore) -> None:
    index = zoo.index()
    replace_column(zoo, "row", 10**9)
    with pytest.raises(ZooError):
        zoo.read()
    write_index(zoo, index.drop_columns(["sha256"]))
    with pytest.raises(ZooError):
        zoo.read()


def test_an_index_with_a_pickled_arrow_type(zoo: ZooStore, canary: Path) -> None:
    """Arrow once unpickled types that a file brought along (CVE-2023-47248)."""
    index = zoo.index()
    extension = {b"name": b"arrow.py_extension_type", b"metadata": pickle.dumps(Payload(canary))}
    metadata = {b"ARROW:extension:" + key: value for key, value in extension.items()}
    hostile = pa.field("id", pa.string(), metadata=metadata)
    fields = [hostile if field.name == "id" else field for field in index.schema]
    write_index(zoo, pa.table(index.columns, schema=pa.schema(fields)))
    with contextlib.suppress(ZooError):  # Arrow 18 and 19 refuse such a file, later ones read it as text
        zoo.read()


def alias_bomb() -> str:
    """Twelve lines of YAML that stand for a million million entries."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 12)]
    return "\n".join([*lines, "name: *a11", "search: {trials: *a11}"])


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.mkdir [CANARY]",
        "!!python/object/new:os.mkdir [CANARY]",
        "name: !!python/name:os.system",
        alias_bomb(),
        "name: x\nspace: &loop {a: *loop}",
        "name: " + "[" * 50_000,
        "name: ../../etc/passwd",
        "name: x\nzoo: {name: ../../outside}",
        "name: x\npair: __import__('os')",
        "name: x\nsearch: {sampler: {name: os.system}}",
        "name: x\ntrial: {translator: {family: kt_ray.jobs}}",
        "name: x\nstorage: {study: 'postgresql://me:hunter2@host/db'}",
        "name: x\nray: {address: auto, code: 'import os'}",
    ],
    ids=lambda text: text[:40],
)
def test_a_hostile_study_file(text: str, tmp_path: Path, canary: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text.replace("CANARY", str(canary)))
    with pytest.raises(ConfigError) as fault:
        validate_source(StudyConfig, Source(file))
    assert len(str(fault.value)) < 4000
    assert "hunter2" not in str(fault.value)


def study_of(url: str) -> SearchStudy:
    return SearchStudy(StudyConfig(name="theirs"), open_storage(url))


def test_a_database_that_is_none(tmp_path: Path, canary: Path) -> None:
    for content in (pickle.dumps(Payload(canary)), b"SQLite format 3\0" + b"\xff" * 4096):
        (tmp_path / "optuna.db").write_bytes(content)
        with pytest.raises(StudyError):
            study_of(f"sqlite:///{tmp_path / 'optuna.db'}")


def test_a_database_whose_trials_claim_to_be_others(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    study_of(url).ask()
    with sqlite3.connect(tmp_path / "optuna.db") as database:
        database.execute(
            "INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (1, 'failed_trial', ?)",
            (json.dumps("../../../etc"),),
        )
    with pytest.raises(StudyError, match="expected a number"):
        study_of(url).recover("its driver died")


def test_a_database_with_pickles_where_cma_es_keeps_its_state(tmp_path: Path, canary: Path) -> None:
    """Optuna would unpickle whatever the storage holds; kt_ray's sampler unpickles optimisers alone."""
    url = f"sqlite:///{tmp_path / 'optuna.db'}"

    def run(trials: int) -> None:
        for ordinal in range(trials):
            sampler = build_sampler(SamplerConfig(name="cmaes", options={"n_startup_trials": 2}), 0, ordinal)
            study = optuna.create_study(study_name="theirs", storage=url, load_if_exists=True, sampler=sampler)
            study.optimize(
                lambda trial: trial.suggest_float("x", 0, 1) ** 2 + trial.suggest_float("y", 0, 1), n_trials=1
            )

    run(12)  # past the first generation: its own states are read
    with sqlite3.connect(tmp_path / "optuna.db") as database:
        changed = database.execute(
            "UPDATE trial_system_attributes SET value_json = ? WHERE key LIKE 'cma:optimizer%'",
            (json.dumps(pickle.dumps(Payload(canary)).hex()),),
        )
        assert changed.rowcount > 0
    with pytest.raises(StudyError, match="CMA-ES"):
        run(1)
