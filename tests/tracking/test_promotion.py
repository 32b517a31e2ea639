"""The alias `champion` in a real registry: who gets it, and what the registry says of it."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from kt_ray.errors import TrackingError
from kt_ray.networks import State
from kt_ray.tracking import promotion
from kt_ray.tracking.model import CARD_FILE, TRANSLATOR_FILE
from kt_ray.tracking.promotion import promote, register_champion
from kt_ray.tracking.registry import champions, load_champion_path
from kt_ray.tracking.tracker import Tracker
from kt_ray.tracking.view import run_page, version_page, view_page
from tests.tracking.conftest import NAME


def test_the_first_is_champion(register: Any, tracker: Tracker) -> None:
    result = register(1, 0.7)
    assert (result.version, result.promoted) == (1, True)
    assert result.comparison == (
        "First champion: version 1 (mean accuracy 70.00% on selection, 69.00% on test, study s, trial 1) on zoo zoo1, "
        "3 selection members, 500 selection images abc."
    )
    version = tracker.client.get_model_version_by_alias(NAME, "champion")
    assert (int(version.version), version.description) == (1, result.comparison)


def test_only_a_better_one_takes_its_place(register: Any, tracker: Tracker) -> None:
    register(1, 0.7)
    worse, better = register(2, 0.6), register(3, 0.8)
    assert not worse.promoted
    assert "does not beat version 1 (70.00% on selection, 69.00% on test, study s)" in worse.comparison
    assert better.promoted
    assert "beats version 1 (70.00% on selection, 69.00% on test, study s)" in better.comparison
    entries = champions(tracker.uri, NAME)
    assert [(entry.version, entry.champion) for entry in entries] == [(3, True), (2, False), (1, False)]
    assert not register(4, 0.8).promoted  # a draw changes nothing


def test_accuracy_on_test_decides_nothing(register: Any, tracker: Tracker) -> None:
    register(1, 0.7, test=0.7)
    assert not register(2, 0.6, test=0.9).promoted
    assert register(3, 0.8, test=0.5).promoted
    told = [(entry.selection_accuracy, entry.test_accuracy) for entry in champions(tracker.uri, NAME)]
    assert told == [(0.8, 0.5), (0.6, 0.9), (0.7, 0.7)]


def test_without_its_accuracy_on_selection_none_is_compared(register: Any, tracker: Tracker) -> None:
    register(1, 0.7)
    unknown = register(2, 0.9, selection=None)
    assert not unknown.promoted
    assert unknown.comparison == (
        "Not compared: version 2 (mean accuracy 89.00% on test, study s, trial 2) with the champion version 1 "
        "(70.00% on selection, 69.00% on test, study s): version 2 has no accuracy on selection, which decides. "
        "`kt-ray promote` moves the alias by hand."
    )
    promote(tracker.uri, NAME, 2)
    assert "version 2 has no accuracy on selection" in register(3, 0.95).comparison


def test_a_champion_of_an_older_registry_was_chosen_on_test_and_stays(register: Any, tracker: Tracker) -> None:
    register(1, 0.7)
    for tag in ("selection_accuracy", "test_accuracy", "tags_sha256"):
        tracker.client.delete_model_version_tag(NAME, "1", f"kt_ray.{tag}")
    tracker.client.set_model_version_tag(NAME, "1", "kt_ray.accuracy", "0.69")
    result = register(2, 0.9)
    assert not result.promoted
    assert "champion version 1 (69.00% on test, study s): version 1 has no accuracy on selection, " in result.comparison
    entry = champions(tracker.uri, NAME)[1]
    assert (entry.selection_accuracy, entry.test_accuracy, entry.champion) == (None, 0.69, True)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"fingerprint": "zoo2"}, "on the zoo zoo2"),
        ({"protocol": "9 selection members"}, "on the selection protocol 9 selection members"),
    ],
)
def test_other_zoos_and_protocols_are_not_compared(register: Any, changed: dict[str, str], words: str) -> None:
    register(1, 0.7)
    result = register(2, 0.9, **changed)
    assert not result.promoted
    assert result.comparison.startswith("Not compared: ")
    assert words in result.comparison


def test_students_are_compared_on_their_dataset(register: Any, tracker: Tracker) -> None:
    first = register(1, 0.7, on="dataset", fingerprint="d1")
    assert "on dataset d1, 3 selection members" in first.comparison
    better, other = (register(number, 0.8, on="dataset", fingerprint=f"d{number - 1}") for number in (2, 3))
    assert better.comparison.startswith("New champion: ")
    assert "on the dataset d2, the champion version 2 (80.00% on selection, " in other.comparison
    assert " study s) on d1. `kt-ray promote`" in other.comparison
    measured = [(entry.measured_on, entry.fingerprint) for entry in champions(tracker.uri, NAME)]
    assert measured == [("dataset", "d2"), ("dataset", "d1"), ("dataset", "d1")]


def test_a_student_of_an_older_registry_has_its_dataset_under_the_tag_of_a_zoo(register: Any, tracker: Tracker) -> None:
    register(1, 0.7, on="zoo", fingerprint="d1")
    assert tracker.client.get_model_version(NAME, "1").tags["kt_ray.zoo_fingerprint"] == "d1"
    assert register(2, 0.8, on="dataset", fingerprint="d1").promoted
    measured = [(entry.measured_on, entry.fingerprint) for entry in champions(tracker.uri, NAME)]
    assert measured == [("dataset", "d1"), ("zoo", "d1")]


def test_who_became_champion_while_a_model_was_exported_is_compared_with(
    register: Any, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = promotion.write_model

    def export_slowly(*arguments: Any) -> str | None:
        monkeypatch.setattr(promotion, "write_model", export)
        assert register(2, 0.8).promoted
        return export(*arguments)

    monkeypatch.setattr(promotion, "write_model", export_slowly)
    late = register(1, 0.7)
    assert not late.promoted
    assert "does not beat version 1 (80.00% on selection" in late.comparison
    assert [(entry.version, entry.champion) for entry in champions(tracker.uri, NAME)] == [(2, False), (1, True)]


def test_the_same_file_is_registered_once(register: Any, tracker: Tracker) -> None:
    first, second = register(1, 0.7), register(1, 0.7)
    assert (second.version, second.promoted, second.comparison) == (1, True, first.comparison)
    assert len(champions(tracker.uri, NAME)) == 1


def test_a_driver_that_died_before_the_alias_moved_is_made_good(register: Any, tracker: Tracker) -> None:
    register(1, 0.7)
    better = register(2, 0.8)
    tracker.client.set_registered_model_alias(NAME, "champion", "1")
    assert register(2, 0.8) == better
    assert [(entry.version, entry.champion) for entry in champions(tracker.uri, NAME)] == [(2, True), (1, False)]


def test_a_candidate_below_a_block_that_costs_nothing_is_no_champion_unless_that_is_accepted(
    register: Any, tracker: Tracker
) -> None:
    free = {"zero block": 0.5, "pruned block": 0.75}
    weak = register(1, 0.7, free=free)
    assert not weak.promoted
    assert (weak.uri, "pruned block" in weak.weakness) == (f"models:/{NAME}/1", True)
    assert weak.comparison.startswith("Too weak: ")
    assert not any(entry.champion for entry in champions(tracker.uri, NAME))
    accepted = register(1, 0.7, free=free, accept_weak=True)
    assert (accepted.version, accepted.promoted, accepted.uri) == (1, True, f"models:/{NAME}@champion")
    assert "which was accepted" in accepted.comparison
    strong = register(2, 0.75, free=free)
    assert (strong.promoted, strong.weakness) == (True, "")


@pytest.mark.parametrize("name", ["O'Brien", 'say "hi"', """both ' and " """.strip(), "100%_`"])
def test_models_and_studies_of_any_name_are_found(name: str, tracker: Tracker, candidate: Any) -> None:
    first, second = (register_champion(tracker, name, candidate(number, 0.7)) for number in (1, 2))
    assert (first.version, second.version, register_champion(tracker, name, candidate(1, 0.7)).version) == (1, 2, 1)
    assert [entry.version for entry in champions(tracker.uri, name)] == [2, 1]
    assert tracker.study_run(name, {}, {}) == tracker.study_run(name, {}, {})


@pytest.mark.parametrize("dies_in", ["create_model_version", "finalize_logged_model", "log_model_artifacts"])
def test_a_model_that_was_logged_and_not_registered_is_registered_by_the_next_try(
    dies_in: str, register: Any, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, dies_in, raising)
        with pytest.raises(KeyboardInterrupt):
            register(1, 0.7)
    assert register(1, 0.7).version == 1
    models = tracker.client.search_logged_models([tracker.experiment_id])
    assert [str(model.status) for model in models] == ["READY"]


def raising(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


class Unexportable(nn.Module):
    """Decides by a value, which torch.export cannot trace."""

    def forward(self, source: State) -> State:
        return {name: value[:, :1] if float(value.sum()) > 0 else value[:, :2] for name, value in source.items()}


def test_a_translator_that_cannot_be_exported_is_registered_by_its_file(register: Any, tracker: Tracker) -> None:
    result = register(1, 0.7, module=Unexportable())
    assert result.promoted
    file = load_champion_path(tracker.uri, f"models:/{NAME}@champion")
    assert file.name == TRANSLATOR_FILE
    assert "torch cannot export it" in (file.parent / CARD_FILE).read_text()


@pytest.mark.parametrize("tag", ["selection_accuracy", "test_accuracy", "protocol", "zoo_fingerprint", "sha256"])
def test_tags_that_were_not_registered_are_told(tag: str, register: Any, tracker: Tracker) -> None:
    register(1, 0.7)
    tracker.client.set_model_version_tag(NAME, "1", f"kt_ray.{tag}", "0.95")
    for read in (lambda: champions(tracker.uri, NAME), lambda: register(2, 0.8)):
        with pytest.raises(TrackingError, match="version 1 of kt-translator is damaged"):
            read()
    for uri in (f"models:/{NAME}@champion", f"models:/{NAME}/1"):
        with pytest.raises(TrackingError):
            load_champion_path(tracker.uri, uri)


def test_the_page_of_the_study_says_what_it_came_to(register: Any, tracker: Tracker) -> None:
    study = tracker.study_run("s", {}, {})
    trial = tracker.trial_run(study, "s", 1, {"training.learning_rate": 0.01, "loss": "a|b\nc"}, {})
    result = register(1, 0.7, free={"pruned block": 0.75})
    tags = tracker.client.get_run(study).data.tags
    note = tags["mlflow.note.content"]
    for words in (
        f"[trial 1]({run_page(tracker.experiment_id, trial)})",
        f"[{NAME} version 1]({version_page(NAME, 1)})",
        f"[all trials]({view_page(tracker.experiment_id, 's')})",
        result.comparison,
        "**Weak:** 70.00% on selection is below the pruned block",
        "| training.learning_rate | 0.01 |",
        "| loss | a\\|b c |",
        "# A translator",
        "kt-ray resume s",
    ):
        assert words in note
    assert tags["best.training.learning_rate"] == "0.01"
    assert tags["kt_ray.model"] == f"models:/{NAME}/1"
    assert tracker.client.get_model_version(NAME, "1").run_id == trial


def test_promote_by_hand(register: Any, tracker: Tracker) -> None:
    register(1, 0.7)
    register(2, 0.6)
    entry = promote(tracker.uri, NAME, 2, "smaller")
    assert entry.champion
    assert entry.version == 2
    assert "in place of version 1: smaller." in entry.description
    with pytest.raises(TrackingError, match="kt-translator has no version 9; it has 1, 2"):
        promote(tracker.uri, NAME, 9)
