"""Zoos and translators name the code that they need. They never run it: a person gives the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import kt_ray as kt
from kt_ray.config import PairChoice, TranslatorConfig, ZooConfig
from kt_ray.config.study_code import unload_code
from kt_ray.data import Dataset
from kt_ray.errors import CheckpointError, ConfigError, ZooError
from kt_ray.networks import Architecture, PaperArchitecture, architecture_of
from kt_ray.translation.checkpoint import load_translator, save_translator
from kt_ray.translation.translator import build_translator
from kt_ray.zoo.local import build_zoo_locally
from kt_ray.zoo.store import ZooStore

CODE = """
from pathlib import Path
from torch import nn
from kt_ray import register
from kt_ray.networks.resnet import ResidualBlock

Path({mark!r}).touch()

@register.network("mine")
class Mine:
    image_shape, classes, mean, deviation = (1, 28, 28), 10, (), ()

    def __init__(self, options):
        pass

    def build(self):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=4), ResidualBlock(4, 4), nn.Flatten(), nn.Linear(196, 10)
        )

    def sites(self):
        return ("1",)
"""
PAIR = PairChoice(name="halved")
CONFIG = ZooConfig.model_validate(
    {
        "network": {"name": "mine"},
        "members": {"train": 1, "selection": 1, "test": 1},
        "recipe": {"source": {"epochs": 1, "steps": 1}, "target": {"epochs": 1, "steps": 1}},
    }
)


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Path]:
    """A file that registers a network, and leaves a mark when it runs."""
    path = tmp_path / "net.py"
    path.write_text(CODE.format(mark=str(tmp_path / "mark")))
    yield path
    unload_code("net.py")


def forgotten(net: Path) -> Path:
    """As in a fresh process: the code is unknown. Returns its mark, which is not there."""
    unload_code("net.py")
    mark = net.with_name("mark")
    mark.unlink()
    return mark


def described() -> Architecture:
    return architecture_of(PAIR, CONFIG.network, (1, 28, 28), 10)


def test_a_zoo_names_its_code_and_does_not_run_it(net: Path, dataset: Dataset) -> None:
    kt.load_code(net)
    store = ZooStore(str(net.parent / "zoo"))
    build_zoo_locally(CONFIG, PAIR, dataset, store)
    (sha256,) = json.loads((net.parent / "zoo/zoo.json").read_text())["code"].values()
    mark = forgotten(net)

    for read in (store.info, store.read):
        with pytest.raises(ZooError, match=rf"net\.py with SHA-256 {sha256}; .* --code"):
            read()
    with pytest.raises(ConfigError, match="no network is called 'mine'"):
        store.create(CONFIG, PAIR, dataset)
    assert not mark.exists()

    net.write_text(net.read_text() + "# changed")
    kt.load_code(net)
    with pytest.raises(ZooError, match=rf"code=.*{sha256}.* but .*net\.py.* was asked for"):
        store.create(CONFIG, PAIR, dataset)


def test_a_translator_names_its_code_and_does_not_run_it(net: Path) -> None:
    kt.load_code(net)
    config = TranslatorConfig(family="mlp")
    path = net.parent / "translator.safetensors"
    save_translator(path, build_translator(config, described()), config, described(), {})
    assert load_translator(path).architecture == described()
    mark = forgotten(net)

    with pytest.raises(CheckpointError, match=r"net\.py with SHA-256 [0-9a-f]{64}; .* --code"):
        load_translator(path)
    assert not mark.exists()
    kt.load_code(net)
    assert load_translator(path).architecture == described()


def test_a_translator_of_a_persons_family_names_its_code(tmp_path: Path) -> None:
    kt.load_code(Path(__file__).parents[2] / "examples/own_family.py")
    config = TranslatorConfig(family="shared")
    path, architecture = tmp_path / "translator.safetensors", PaperArchitecture("basic_to_simple")
    save_translator(path, build_translator(config, architecture), config, architecture, {})
    assert load_translator(path).config == config
    unload_code("own_family.py")
    with pytest.raises(CheckpointError, match=r"own_family\.py with SHA-256"):
        load_translator(path)


def test_what_was_made_of_other_code_is_forgotten(net: Path) -> None:
    kt.load_code(net)
    assert described().source_network().block.conv1.out_channels == 4
    net.write_text(net.read_text().replace("ResidualBlock(4, 4)", "ResidualBlock(4, 8), nn.Conv2d(8, 4, 1)"))
    kt.load_code(net)
    assert described().source_network().block.conv1.out_channels == 8
