"""Saved translators come back whole, or say why not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from kt_ray.config import NetworkConfig, NeuronTransformerOptions, TranslatorConfig
from kt_ray.errors import CheckpointError
from kt_ray.networks import PaperArchitecture, stacked
from kt_ray.networks.state_file import read_written, write_state
from kt_ray.translation import refinement
from kt_ray.translation.checkpoint import FORMAT, LoadedTranslator, load_translator, save_translator
from kt_ray.translation.translator import build_translator

CONFIG = TranslatorConfig(
    family="neuron_transformer", neuron_transformer=NeuronTransformerOptions(width=16, depth=1), output="direct"
)


def test_round_trip(tmp_path: Path) -> None:
    architecture = PaperArchitecture("basic_to_biased", NetworkConfig(channels=4))
    translator = build_translator(CONFIG, architecture).eval()
    save_translator(tmp_path / "t.safetensors", translator, CONFIG, architecture, {"zoo": "z", "accuracy": 0.5})
    loaded = load_translator(tmp_path / "t.safetensors")
    assert (loaded.config, loaded.architecture, loaded.extra) == (CONFIG, architecture, {"zoo": "z", "accuracy": 0.5})
    source = stacked.stack([architecture.source_block().state_dict()])
    for name, value in translator(source).items():
        assert torch.equal(loaded.translator(source)[name], value)
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


REFINED = TranslatorConfig(mixer={"size": "tiny"}, refinement={"steps": 2, "probes": 2, "probe_sets": 2, "width": 8})


def test_no_probes_are_drawn_for_a_file_that_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = PaperArchitecture("basic_to_simple")
    translator = build_translator(REFINED, architecture)
    translator.refiner.draw_probes(torch.empty(0), torch.Generator())
    save_translator(tmp_path / "t.safetensors", translator, REFINED, architecture, {})
    monkeypatch.setattr(refinement, "drawn_curves", lambda *arguments: pytest.fail("strokes were drawn"))
    loaded = load_translator(tmp_path / "t.safetensors").translator
    assert torch.equal(loaded.refiner.probes, translator.refiner.probes)
    other = loaded.for_architecture(PaperArchitecture("basic_to_simple", NetworkConfig(head_channels=7)))
    assert torch.equal(other.refiner.probes, translator.refiner.probes)


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (4, 1, 14, 14), (4, 784)])
def test_probes_of_another_shape_than_configured(tmp_path: Path, shape: tuple[int, ...]) -> None:
    architecture = PaperArchitecture("basic_to_simple")
    save_translator(tmp_path / "t.safetensors", build_translator(REFINED, architecture), REFINED, architecture, {})
    tensors, metadata = read_written(tmp_path / "t.safetensors")
    write_state(tmp_path / "t.safetensors", tensors | {"refiner.probes": torch.zeros(shape)}, metadata)
    with pytest.raises(CheckpointError, match=r"does not fit this version of kt_ray: .*refiner\.probes") as error:
        load_translator(tmp_path / "t.safetensors")
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_translator(tmp_path / "none.safetensors")


def test_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_translator(
        path,
        build_translator(CONFIG, PaperArchitecture("basic_to_simple")),
        CONFIG,
        PaperArchitecture("basic_to_simple"),
        {},
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


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_is_found_or_changes_nothing(seed: int, tmp_path: Path) -> None:
    """It changes nothing in the name of the checksum alone."""
    architecture, path = PaperArchitecture("basic_to_simple"), tmp_path / "t.safetensors"
    save_translator(path, build_translator(CONFIG, architecture), CONFIG, architecture, {"metrics": {"accuracy": 0.5}})
    before, content = load_translator(path), bytearray(path.read_bytes())
    bit = random.Random(seed).randrange(8 * (len(content) if seed % 2 else 1000))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    try:
        after = load_translator(path)
    except CheckpointError:
        return
    assert (after.config, after.architecture, after.extra) == (before.config, before.architecture, before.extra)
    for name, value in after.translator.state_dict().items():
        assert torch.equal(value, before.translator.state_dict()[name])


def test_a_directory_for_a_hub_is_loaded_again(tmp_path: Path) -> None:
    architecture = PaperArchitecture("basic_to_simple")
    extra = {"metrics": {"accuracy_mean": 0.875}, "zoo": "z"}
    translator = LoadedTranslator(build_translator(CONFIG, architecture).eval(), CONFIG, architecture, extra)
    folder = translator.save_pretrained(tmp_path / "a" / "translator")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "translator.safetensors"]
    loaded = load_translator(folder)
    assert (loaded.config, loaded.architecture, loaded.extra) == (CONFIG, architecture, extra)
    _, head, body = (folder / "README.md").read_text().split("---\n", 2)
    described = yaml.safe_load(head)
    assert (described["library_name"], described["license"], described["metrics"]) == (
        "kt_ray",
        "apache-2.0",
        ["accuracy"],
    )
    assert described["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.875
    assert "# Translator basic_to_simple" in body
    with pytest.raises(CheckpointError):
        load_translator(tmp_path / "a")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        translator.save_pretrained(tmp_path / "file")
