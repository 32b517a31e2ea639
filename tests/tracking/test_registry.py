from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kt_ray.errors import TrackingError
from kt_ray.networks import State
from kt_ray.tracking.model import CARD_FILE, TRANSLATOR_FILE, flat
from kt_ray.tracking.registry import ChampionResult, champions, load_champion_path, promote, register_champion
from kt_ray.tracking.store import check_tracking
from kt_ray.tracking.tracker import Tracker

NAME = "kt-translator"


@pytest.fixture
def register(tracker: Tracker, translator: nn.Module, example: State, tmp_path: Path) -> Any:
    """Registers a translator whose file differs by `number`."""
    study = tracker.study_run("s", {}, {})

    def run(number: int, accuracy: float, *, module: nn.Module = translator, **changed: Any) -> ChampionResult:
        file = tmp_path / f"{number}.safetensors"
        save_file({"factor": torch.tensor([float(number)])}, file)
        details = {"zoo_fingerprint": "zoo1", "protocol": "3 test members, 1000 test images abc"} | changed
        return register_champion(
            tracker, NAME, file, module, example, {"rows": [{"name": "translated", "mean": accuracy}]},
            accuracy=accuracy, study="s", trial=number, card="# A translator\n",
            run_id=tracker.trial_run(study, "s", number, {}, {}), **details,
        )  # fmt: skip

    return run


def test_the_first_is_champion(register: Any, tracker: Tracker) -> None:
    result = register(1, 0.7)
    assert (result.version, result.promoted, result.not_exported) == (1, True, None)
    assert result.comparison == (
        "First champion: version 1 (70.00% mean accuracy, study s, trial 1) on zoo zoo1, "
        "3 test members, 1000 test images abc."
    )
    version = tracker.client.get_model_version_by_alias(NAME, "champion")
    assert (int(version.version), version.description) == (1, result.comparison)


def test_only_a_better_one_takes_its_place(register: Any, tracker: Tracker) -> None:
    register(1, 0.7)
    worse, better = register(2, 0.6), register(3, 0.8)
    assert not worse.promoted
    assert "does not beat version 1 (70.00%" in worse.comparison
    assert better.promoted
    assert "beats version 1 (70.00%" in better.comparison
    entries = champions(tracker.uri, NAME)
    assert [(entry.version, entry.champion) for entry in entries] == [(3, True), (2, False), (1, False)]
    assert not register(4, 0.8).promoted  # a draw changes nothing


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"zoo_fingerprint": "zoo2"}, "on the zoo zoo2"), ({"protocol": "9 test members"}, "on the test protocol 9 test")],
)
def test_other_zoos_and_protocols_are_not_compared(register: Any, changed: dict[str, str], words: str) -> None:
    register(1, 0.7)
    result = register(2, 0.9, **changed)
    assert not result.promoted
    assert result.comparison.startswith("Not compared: ")
    assert words in result.comparison


def test_the_same_file_is_registered_once(register: Any, tracker: Tracker) -> None:
    first, second = register(1, 0.7), register(1, 0.7)
    assert (second.version, second.promoted, second.comparison) == (1, True, first.comparison)
    assert len(champions(tracker.uri, NAME)) == 1


def test_the_model_loads_without_this_package(
    register: Any, tracker: Tracker, translator: nn.Module, example: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(1, 0.7)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(tracker.uri)
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
    assert (path.parent / CARD_FILE).read_text() == "# A translator\n"
    assert (path.parent / "evaluation.json").is_file()
    assert not [found for found in path.parent.rglob("*") if found.suffix in (".pkl", ".pth", ".pickle")]
    assert load_champion_path(tracker.uri, str(path)) == path == load_champion_path(tracker.uri, str(path.parent))


class Unexportable(nn.Module):
    """Decides by a value, which torch.export cannot trace."""

    def forward(self, source: State) -> State:
        return {name: value[:, :1] if float(value.sum()) > 0 else value[:, :2] for name, value in source.items()}


def test_a_translator_that_cannot_be_exported_is_registered_by_its_file(register: Any, tracker: Tracker) -> None:
    result = register(1, 0.7, module=Unexportable())
    assert result.promoted
    assert result.not_exported
    assert load_champion_path(tracker.uri, f"models:/{NAME}@champion").name == TRANSLATOR_FILE


def test_promote_by_hand(register: Any, tracker: Tracker) -> None:
    register(1, 0.7)
    register(2, 0.6)
    entry = promote(tracker.uri, NAME, 2, "smaller")
    assert entry.champion
    assert entry.version == 2
    assert "in place of version 1: smaller." in entry.description
    with pytest.raises(TrackingError, match="kt-translator has no version 9; it has 1, 2"):
        promote(tracker.uri, NAME, 9)


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
