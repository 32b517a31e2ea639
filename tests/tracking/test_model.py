from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from torch import nn

from kt_ray.config import TranslatorConfig
from kt_ray.networks import State
from kt_ray.tracking.model import flat, write_model
from kt_ray.translation.checkpoint import load_translator, save_translator
from kt_ray.translation.translator import build_translator
from kt_ray.zoo.members import Zoo


@pytest.mark.parametrize(
    "options",
    [
        {"family": "mixer", "mixer": {"size": "tiny"}},
        {"family": "mixer", "mixer": {"size": "tiny"}, "output": "direct", "batch_norm": "dropped"},
        {"family": "neuron_transformer", "neuron_transformer": {"width": 16, "depth": 1}},
        {"family": "graph", "context": "network", "base": "merged"},
    ],
)
def test_translators_are_exported_for_any_number_of_blocks(
    options: dict[str, Any], random_zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    torch.manual_seed(0)
    architecture, config = random_zoo.architecture, TranslatorConfig.model_validate(options)
    translator = build_translator(config, architecture).eval().requires_grad_(False)
    blocks = {name: value[:5] for name, value in translator.read(random_zoo.parameters).items()}
    file = tmp_path / "translator.safetensors"
    save_translator(file, translator, config, architecture, {})
    directory = tmp_path / "model"
    example = {name: value[:1] for name, value in blocks.items()}
    assert write_model(directory, translator, example, file, "", "m-1", "run", {}) is None

    model = mlflow.pyfunc.load_model(str(directory))
    with torch.no_grad():
        expected = flat(translator(blocks)).numpy()
    np.testing.assert_allclose(model.predict(flat(blocks).numpy()), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.predict(flat(blocks)[:1].numpy()), expected[:1], rtol=1e-5, atol=1e-6)
    again = load_translator(directory / "translator.safetensors").translator
    with torch.no_grad():
        np.testing.assert_array_equal(flat(again(blocks)).numpy(), expected)


def test_a_model_that_takes_only_as_many_blocks_as_its_example_is_not_kept(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def forward(self, source: State) -> State:
            return {name: value / len(value) for name, value in source.items()}

    file = tmp_path / "translator.safetensors"
    file.touch()
    reason = write_model(tmp_path / "model", Counting(), {"a": torch.randn(3, 2)}, file, "", "m-1", "run", {})
    assert reason is not None
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "MLmodel", "README.md", "translator.safetensors",
    ]  # fmt: skip


def test_refinement_is_kept_as_its_file_without_minutes_of_tracing(random_zoo: Zoo, tmp_path: Path) -> None:
    architecture = random_zoo.architecture
    config = TranslatorConfig(refinement={"steps": 4, "probes": 4, "width": 8}, mixer={"size": "tiny"})
    translator = build_translator(config, architecture).eval()
    file = tmp_path / "translator.safetensors"
    save_translator(file, translator, config, architecture, {})
    example = translator.read(random_zoo.parameters)
    reason = write_model(tmp_path / "model", translator, example, file, "", "m-1", "run", {})
    assert reason == "refinement takes gradients, which torch.export does not trace"
    again = load_translator(tmp_path / "model" / "translator.safetensors").translator
    assert torch.equal(flat(again(example)), flat(translator.requires_grad_(False)(example)))
