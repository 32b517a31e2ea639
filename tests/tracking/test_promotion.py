"""The alias `champion` in a real registry: who gets it, and what the registry says of it."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from kt_ray.errors import TrackingError
from kt_ray.networks import State
from kt_ray.tracking.model import TRANSLATOR_FILE
from kt_ray.tracking.promotion import promote
from kt_ray.tracking.registry import champions, load_champion_path
from kt_ray.tracking.tracker import Tracker
from tests.tracking.conftest import NAME


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
    [({"fingerprint": "zoo2"}, "on the zoo zoo2"), ({"protocol": "9 test members"}, "on the test protocol 9 test")],
)
def test_other_zoos_and_protocols_are_not_compared(register: Any, changed: dict[str, str], words: str) -> None:
    register(1, 0.7)
    result = register(2, 0.9, **changed)
    assert not result.promoted
    assert result.comparison.startswith("Not compared: ")
    assert words in result.comparison


def test_students_are_compared_on_their_dataset(register: Any, tracker: Tracker) -> None:
    first = register(1, 0.7, on="dataset", fingerprint="d1")
    assert "on dataset d1, 3 test members" in first.comparison
    better, other = (register(number, 0.8, on="dataset", fingerprint=f"d{number - 1}") for number in (2, 3))
    assert better.comparison.startswith("New champion: ")
    assert "on the dataset d2, the champion version 2 (80.00%, study s) on d1." in other.comparison
    measured = [(entry.measured_on, entry.fingerprint) for entry in champions(tracker.uri, NAME)]
    assert measured == [("dataset", "d2"), ("dataset", "d1"), ("dataset", "d1")]


def test_a_student_of_an_older_registry_has_its_dataset_under_the_tag_of_a_zoo(register: Any, tracker: Tracker) -> None:
    register(1, 0.7, on="zoo", fingerprint="d1")
    assert tracker.client.get_model_version(NAME, "1").tags["kt_ray.zoo_fingerprint"] == "d1"
    assert register(2, 0.8, on="dataset", fingerprint="d1").promoted
    measured = [(entry.measured_on, entry.fingerprint) for entry in champions(tracker.uri, NAME)]
    assert measured == [("dataset", "d1"), ("zoo", "d1")]


def test_the_same_file_is_registered_once(register: Any, tracker: Tracker) -> None:
    first, second = register(1, 0.7), register(1, 0.7)
    assert (second.version, second.promoted, second.comparison) == (1, True, first.comparison)
    assert len(champions(tracker.uri, NAME)) == 1


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
