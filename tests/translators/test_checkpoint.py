"""Saved translators come back whole, or say why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kt_ray.config import NetworkConfig, NeuronTransformerOptions, TranslatorConfig
from kt_ray.errors import CheckpointError
from kt_ray.networks import Architecture, stacked
from kt_ray.translators import build_translator
from kt_ray.translators.checkpoint import FORMAT, load_translator, save_translator

CONFIG = TranslatorConfig(
    family="neuron_transformer", neuron_transformer=NeuronTransformerOptions(width=16, depth=1), output="direct"
)


def test_round_trip(tmp_path: Path) -> None:
    architecture = Architecture("basic_to_biased", NetworkConfig(channels=4))
    translator = build_translator(CONFIG, architecture).eval()
    save_translator(tmp_path / "t.safetensors", translator, CONFIG, architecture, {"zoo": "z", "accuracy": 0.5})
    loaded = load_translator(tmp_path / "t.safetensors")
    assert (loaded.config, loaded.architecture, loaded.extra) == (CONFIG, architecture, {"zoo": "z", "accuracy": 0.5})
    source = stacked.stack([architecture.source_block().state_dict()])
    for name, value in translator(source).items():
        assert torch.equal(loaded.translator(source)[name], value)
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_translator(tmp_path / "none.safetensors")


def test_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_translator(
        path, build_translator(CONFIG, Architecture("basic_to_simple")), CONFIG, Architecture("basic_to_simple"), {}
    )
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_translator(path)


def test_other_safetensors(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "t.safetensors")
    with pytest.raises(CheckpointError, match=r"its format is None, expected 'kt_ray.translator/1'"):
        load_translator(tmp_path / "t.safetensors")


def test_damaged_header(tmp_path: Path) -> None:
    save_file(
        {"x": torch.zeros(1)}, tmp_path / "t.safetensors", {"format": FORMAT, "config": "{}", "architecture": "[]"}
    )
    with pytest.raises(CheckpointError, match="does not fit this version"):
        load_translator(tmp_path / "t.safetensors")
