"""What is left and told of a finished study; `test_runner` runs one to its end."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kt_ray.config import DatasetConfig, StudyConfig, TrialConfig, validate
from kt_ray.data import load_dataset
from kt_ray.errors import StudyError
from kt_ray.studies.conclusion import CONCLUSION, Conclusion, print_conclusion, read_conclusion
from kt_ray.studies.console import StudyConsole
from kt_ray.studies.translation_study import TranslationStudy, model_card, selection_accuracy
from kt_ray.studies.workspace import Workspace
from kt_ray.studies.zoos import open_zoo
from kt_ray.translation.checkpoint import load_translator
from kt_ray.translation.task import TranslatorTask
from kt_ray.translation.training import TranslatorTraining
from kt_ray.translation.transplants import translate, transplant_accuracy

CONFIG = StudyConfig(name="s")
ROW = {
    "name": "translated",
    "mean": 0.9,
    "min": 0.8,
    "max": 1.0,
    "agreement": 0.75,
    "parameters": 10,
    "multiply_adds": 20,
    "accuracies": [0.8, 1.0],
    "seconds": 0.1,
}
EVALUATED_ON = {
    "member_count": 2,
    "members": "test",
    "image_count": 9,
    "images": "test",
    "zoo": "z",
    "dataset": "mnist",
}
TABLE = "| translated | 0.9 |\n"
CAME_TO = Conclusion(
    study="s",
    trial=3,
    value=0.875,
    params={"training.learning_rate": 0.01},
    zoo="z",
    dataset="d",
    translator="translator.safetensors",
    evaluation=EVALUATED_ON | {"rows": [ROW]},
    table=TABLE,
    model="kt-translator",
    version=2,
    promoted=True,
    comparison="New champion: version 2.",
    study_page="http://page",
)


def test_a_conclusion_is_read_back(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert read_conclusion(workspace, "s") is None
    directory = workspace.study_directory("s")
    directory.mkdir(parents=True)
    (directory / CONCLUSION).write_text(CAME_TO.model_dump_json())
    assert read_conclusion(workspace, "s") == CAME_TO
    (directory / CONCLUSION).write_text("")
    with pytest.raises(StudyError, match=r"conclusion\.json is damaged \(.*\); remove it and run"):
        read_conclusion(workspace, "s")


def test_the_end_says_where_everything_lies_and_what_to_type(tmp_path: Path) -> None:
    written = io.StringIO()
    with StudyConsole(Console(file=written, width=1000)) as console:
        print_conclusion(TranslationStudy(CONFIG, Workspace(tmp_path)), CAME_TO, console)
    told = written.getvalue()
    for words in (
        "2 test members × 9 test images of mnist",
        "best: trial 3, accuracy_mean 0.8750 on selection members and images",
        "registry: New champion: version 2.",
        f"study:   sqlite:///{tmp_path}/optuna.db (s)",
        f"browse:    kt-ray ui --workspace {tmp_path}",
        f"kt-ray translate models:/kt-translator@champion CHECKPOINT -o OUT.safetensors --workspace {tmp_path}",
        f"kt-ray resume s --workspace {tmp_path} --add 12",
    ):
        assert words in told


@pytest.mark.parametrize("settings", [{"ema": 0.9}, {"patience": 1}])
def test_the_accuracy_that_decides_is_of_the_weights_that_are_registered(
    tmp_path: Path, settings: dict[str, float]
) -> None:
    """Averaged weights are not the last ones, and patience runs out at an epoch that is not the best."""
    zoo, dataset = open_zoo("pretrained:mnist5k", None).read(), load_dataset(DatasetConfig())
    training = {"epochs": 2, "steps_per_epoch": 2, "learning_rate": 0.01, **settings}
    trial = validate(TrialConfig, {"translator": {"mixer": {"size": "tiny"}}, "training": training})
    trained = TranslatorTraining(trial, zoo, dataset)
    while not trained.finished:
        metrics = trained.run_epoch()
    TranslatorTask(zoo, dataset).export(trained, trial, tmp_path, metrics)
    loaded = load_translator(tmp_path / "translator.safetensors")
    held_out = zoo.where("selection")
    reached = transplant_accuracy(held_out, translate(loaded.translator, held_out), dataset.selection)
    assert selection_accuracy(loaded, zoo) == metrics["accuracy_mean"] == float(reached.mean())
    assert selection_accuracy(loaded, replace(zoo, fingerprint="another")) is None


def test_the_card_says_from_what_the_translator_was_made() -> None:
    card = model_card(CONFIG, TABLE)
    counts = CONFIG.zoo.members
    assert f"{counts.train} training, {counts.selection} selection and {counts.test} test members" in card
    assert TABLE in card
