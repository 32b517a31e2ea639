"""What is registered, read back: listed, loaded by MLflow alone, found as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from torch import nn

from kt_ray.errors import TrackingError
from kt_ray.networks import State
from kt_ray.tracking.flat import flat
from kt_ray.tracking.model import CARD_FILE
from kt_ray.tracking.registry import champions, load_champion_path
from kt_ray.tracking.store import check_tracking
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
