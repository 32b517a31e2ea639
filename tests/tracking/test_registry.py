"""What is registered, read back: listed, loaded by MLflow alone, found as a file."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from torch import nn

from kt_ray.errors import TrackingError
from kt_ray.networks import State
from kt_ray.tracking.model import CARD_FILE
from kt_ray.tracking.pyfunc import flat
from kt_ray.tracking.registry import champions, load_champion_path
from kt_ray.tracking.store import check_tracking, default_store
from kt_ray.tracking.tracker import Tracker
from tests.tracking.conftest import NAME


def test_the_model_loads_without_this_package(
    register: Any, tracker: Tracker, translator: nn.Module, example: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(1, 0.7)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", tracker.uri)
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    rows = flat({name: torch.cat([value, value, value]) for name, value in example.items()})  # another batch size
    with torch.no_grad():
        expected = flat(translator({name: torch.cat([value] * 3) for name, value in example.items()}))
    np.testing.assert_allclose(model.predict(rows.numpy()), expected.numpy(), rtol=1e-6)
    signature = model.metadata.signature
    assert signature.inputs.inputs[0].shape == (-1, 32)
    assert signature.outputs.inputs[0].shape == (-1, 16)
    assert model.metadata.metadata["source"] == [["conv1.weight", [4, 2]], ["conv2.weight", [6, 2, 2]]]
    np.testing.assert_allclose(model.input_example, flat(example).numpy(), rtol=1e-6)


def test_the_safetensors_file_and_its_card_are_found(register: Any, tracker: Tracker, tmp_path: Path) -> None:
    register(7, 0.7)
    for uri in (f"models:/{NAME}@champion", f"models:/{NAME}/1"):
        path = load_champion_path(tracker.uri, uri)
        assert path.read_bytes() == (tmp_path / "7.safetensors").read_bytes()
    assert (path.parent / CARD_FILE).read_text().startswith("# A translator\n\n## Loading\n")
    assert (path.parent / "evaluation.json").is_file()
    assert not [found for found in path.parent.rglob("*") if found.suffix in (".pkl", ".pth", ".pickle")]
    assert load_champion_path(tracker.uri, str(path)) == path == load_champion_path(tracker.uri, str(path.parent))


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("models:/nobody@champion", "is not in the registry .*, which has no models"),
        ("models:/nobody/4", "is not in the registry"),
        ("models:/nobody", "names no version; expected models:/NAME@champion"),
        ("nowhere.safetensors", "no translator at 'nowhere.safetensors'; expected a safetensors file"),
    ],
)
def test_what_is_not_there_is_named(store_uri: str, uri: str, words: str) -> None:
    with pytest.raises(TrackingError, match=words):
        load_champion_path(store_uri, uri)


def test_champions_of_an_unknown_model(tracker: Tracker) -> None:
    assert champions(tracker.uri, "nobody") == []


def test_reading_makes_no_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for read in (lambda: champions(uri, NAME), lambda: load_champion_path(uri, f"models:/{NAME}@champion")):
        with pytest.raises(TrackingError, match=r"there is no MLflow database at .* yet; `kt-ray run` makes one"):
            read()
    check_tracking(uri)
    assert not list(tmp_path.iterdir())


def test_a_damaged_translator_is_refused(register: Any, tracker: Tracker) -> None:
    register(1, 0.7)
    path = load_champion_path(tracker.uri, f"models:/{NAME}@champion")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(TrackingError, match="SHA-256") as raised:
        load_champion_path(tracker.uri, f"models:/{NAME}@champion")
    assert str(path) in str(raised.value)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("tagged", [True, False], ids=["made now", "made by an older version"])
def test_a_copy_of_a_workspace_keeps_its_champion_and_leaves_the_original_alone(
    tagged: bool, register: Any, tracker: Tracker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    register(1, 0.7)
    if not tagged:
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
            database.execute("delete from experiment_tags where key = 'kt_ray.artifact_root'")
            database.commit()
    copy = tmp_path / "some where" / "a copy"
    shutil.copytree(tmp_path, copy, ignore=shutil.ignore_patterns("some where"))
    uri, before = f"sqlite:///{copy}/mlflow.db", contents(tmp_path / "artifacts")
    path = load_champion_path(uri, f"models:/{NAME}@champion")
    assert copy in path.parents
    assert "moved or copied" in caplog.text
    later = Tracker(uri, "kt_ray", (copy / "artifacts").as_uri())
    later.log_text(later.study_run("s", {}, {}), "new", "new.txt")
    with default_store(uri):
        assert mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(np.zeros((1, 32), np.float32)).shape == (
            1,
            16,
        )
    assert contents(tmp_path / "artifacts") == before
    assert list(copy.rglob("new.txt"))
    caplog.clear()
    assert load_champion_path(uri, f"models:/{NAME}/1") == path
    assert "moved or copied" not in caplog.text


def test_artifacts_that_were_kept_elsewhere_stay_there(store_uri: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "large disk" / "artifacts"
    tracker = Tracker(store_uri, "kt_ray", elsewhere.as_uri())
    (tmp_path / "artifacts").mkdir()
    tracker.log_text(tracker.study_run("s", {}, {}), "kept", "kept.txt")
    Tracker(store_uri, "kt_ray", None)
    assert list(elsewhere.rglob("kept.txt"))
    tracker.log_text(tracker.study_run("s", {}, {}), "kept", "also.txt")
    assert list(elsewhere.rglob("also.txt"))
