"""What ships loads, translates and says what it is."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest
import torch

from kt_ray.config import DatasetConfig, StudyConfig
from kt_ray.data import load_dataset
from kt_ray.errors import CheckpointError
from kt_ray.networks import PaperArchitecture
from kt_ray.networks.cost import parameter_count
from kt_ray.studies.extension import started_from
from kt_ray.studies.workspace import Workspace
from kt_ray.translation.bundled import TRANSLATORS
from kt_ray.translation.checkpoint import load_translator
from kt_ray.translation.transplants import translate, transplant_accuracy
from kt_ray.zoo.bundled import ZOOS
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore


def test_what_is_promised_ships_and_is_packaged() -> None:
    assert "basic_to_simple" in TRANSLATORS.names
    options = configparser.ConfigParser()
    options.read(Path(__file__).parents[2] / "setup.cfg")
    patterns = options["options.package_data"]["kt_ray.translation"].split(", ")
    for file in ("basic_to_simple.safetensors", "basic_to_simple.md"):
        assert any((TRANSLATORS.directory / file).match(pattern) for pattern in patterns)


@pytest.mark.parametrize("name", TRANSLATORS.names)
def test_shipped_translators_load_and_have_a_card(random_zoo: Zoo, name: str) -> None:
    loaded = load_translator(TRANSLATORS.path(f"pretrained:{name}"))
    assert loaded.architecture == PaperArchitecture(loaded.architecture.pair)
    blocks = loaded.translator(loaded.translator.read(random_zoo.take(torch.arange(1)).parameters))
    expected = loaded.architecture.target_block().state_dict()
    assert {key: value.shape[1:] for key, value in blocks.items()} == {k: v.shape for k, v in expected.items()}
    assert (TRANSLATORS.directory / f"{name}.md").read_text().startswith("#")
    assert TRANSLATORS.path(name).stat().st_size < 5 * 2**20


@pytest.mark.parametrize("name", ["fast", "exact"])
def test_the_bundled_fast_and_exact_translators_keep_the_accuracy_of_networks_of_another_zoo(name: str) -> None:
    zoo = ZooStore(str(ZOOS.path("mnist5k"))).read().where("test").take(torch.arange(4))
    images = load_dataset(DatasetConfig(name="mnist5k")).test.take(slice(0, 200))
    translator = load_translator(TRANSLATORS.path(name)).translator
    source = transplant_accuracy(zoo, zoo.part("source"), images)
    translated = transplant_accuracy(zoo, translate(translator, zoo), images)
    assert translated.mean() > 0.95 * source.mean()


def test_only_what_was_learned_counts_as_a_parameter_of_the_shipped_translator() -> None:
    """Its 384 probes of 28 × 28 pixels and its steps' rates stayed as they began."""
    translator = load_translator(TRANSLATORS.path("basic_to_simple")).translator
    whole = sum(value.numel() for value in translator.state_dict().values())
    assert parameter_count(translator) == whole - 384 * 28 * 28 - 384 * 4 == 273_750


def test_a_search_may_start_from_what_ships(tmp_path: Path) -> None:
    space = {"translator.refinement.starts": {"int": [1, 4]}, "training.batch_size": {"int": [1, 8]}}  # it had 32
    config = StudyConfig.model_validate({"name": "next", "space": space})
    started = started_from(config, Workspace.open(tmp_path), ["pretrained:basic_to_simple"])
    assert started.search.points == ({"translator.refinement.starts": 3},)


def test_unknown_names_are_told() -> None:
    with pytest.raises(CheckpointError, match="no translator 'other' is bundled with kt_ray; there are"):
        TRANSLATORS.path("pretrained:other")
