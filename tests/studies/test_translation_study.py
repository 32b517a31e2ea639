"""What is of translation studies alone: where their champion is evaluated, and what they can search for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from kt_ray.config import MemberCounts, StudyConfig, TranslatorConfig
from kt_ray.data import Dataset
from kt_ray.errors import ConfigError, ResourceError, StudyError
from kt_ray.jobs.remote import run_remotely
from kt_ray.networks import PaperArchitecture
from kt_ray.search.lease import hold_lease
from kt_ray.search.storage import open_storage
from kt_ray.studies.console import StudyConsole
from kt_ray.studies.runner import run_study
from kt_ray.studies.translation_study import TranslationStudy, _evaluate_on, draws_mixture
from kt_ray.studies.workspace import OUTBOX, Workspace
from kt_ray.translation.checkpoint import load_translator, save_translator
from kt_ray.translation.evaluation import evaluate
from kt_ray.translation.translator import build_translator
from kt_ray.zoo.untrained import untrained_zoo

ARCHITECTURE = PaperArchitecture("basic_to_simple")
STROKES = {"categorical": ["strokes"]}


@pytest.fixture
def translator(tmp_path: Path) -> Path:
    config, path = TranslatorConfig(family="mlp"), tmp_path / "translator.safetensors"
    save_translator(path, build_translator(config, ARCHITECTURE), config, ARCHITECTURE, {})
    return path


def test_a_champion_is_evaluated_in_a_task_as_it_would_be_here(
    translator: Path, dataset: Dataset, ray_session: None
) -> None:
    zoo = untrained_zoo(ARCHITECTURE, MemberCounts(train=2, selection=1, test=2))
    given = translator.read_bytes(), (), zoo, dataset

    there = run_remotely(_evaluate_on, {"CPU": 1}, {}, lambda _: None, *given)

    here = evaluate(load_translator(translator).translator, zoo, dataset)
    assert [row.accuracies for row in there.rows] == [row.accuracies for row in here.rows]


def test_of_trials_on_gpus_the_champion_is_evaluated_on_one(
    translator: Path, dataset: Dataset, tmp_path: Path, ray_session: None
) -> None:
    config = StudyConfig.model_validate({"name": "gpus", "search": {"resources": {"gpus": 0.5}}})
    study = TranslationStudy(config, Workspace(tmp_path))
    study.zoo, study.dataset = untrained_zoo(ARCHITECTURE, MemberCounts(train=2, selection=1, test=2)), dataset

    with pytest.raises(ResourceError, match=r"no node has CPU=1, GPU=0\.5; the cluster's nodes have: CPU=2"):
        study.measure(translator, None)


@pytest.mark.parametrize(
    ("trial", "space", "expected"),
    [
        ({}, {}, False),
        ({"refinement": {"steps": 2, "images": "mixture"}}, {}, True),
        ({"refinement": {"images": "mixture"}}, {"translator.refinement.steps": {"int": [0, 4]}}, True),
        ({"refinement": {"steps": 2, "images": "mixture"}}, {"translator.refinement.images": STROKES}, False),
        ({"base": "projected", "projection": {"images": "mixture"}}, {}, True),
        ({"base": "projected", "projection": {"images": "strokes"}}, {}, False),
    ],
)
def test_a_mixture_is_made_before_trials_only_if_one_may_draw_from_it(
    trial: dict[str, Any], space: dict[str, Any], expected: bool
) -> None:
    config = StudyConfig.model_validate({"name": "s", "trial": {"translator": trial}, "space": space})
    assert draws_mixture(config) is expected


def test_a_network_with_one_site_has_no_accuracy_of_all_sites(dataset: Dataset, tmp_path: Path) -> None:
    search = {"objectives": [{"metric": "network_accuracy", "direction": "maximize"}]}
    trial = {"translator": {"family": "mlp"}, "training": {"batch_size": 2}}
    config = StudyConfig.model_validate({"name": "one", "search": search, "trial": trial})

    with pytest.raises(ConfigError, match=r"network_accuracy is of networks with blocks at several sites"):
        TranslationStudy(config, Workspace(tmp_path)).try_batch(dataset)


def test_what_a_living_driver_has_for_mlflow_is_left_alone(tmp_path: Path) -> None:
    workspace, config = Workspace.open(tmp_path), StudyConfig.model_validate({"name": "held"})
    study = optuna.create_study(storage=open_storage(workspace.study_storage), study_name="held")
    waiting = workspace.study_directory("held") / OUTBOX
    waiting.parent.mkdir(parents=True)
    waiting.write_text("half a li")  # as it looks while it is written

    with hold_lease(study), pytest.raises(StudyError, match=r"study held is being searched by"):
        run_study(config, workspace, StudyConsole(), accept_changes=True)

    assert waiting.read_text() == "half a li"
