"""A translator on a device is exported as one on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_ray.data import Dataset
from kt_ray.tracking.model import write_model
from kt_ray.translation.checkpoint import save_translator
from kt_ray.zoo.members import Zoo
from tests.devices.pretended import pretended_cuda
from tests.devices.test_evaluation import translator_of
from tests.devices.test_translator_training import CASES


@pytest.mark.parametrize("name", ["mixer", "learned steps"])
def test_the_model_is_exported(name: str, random_zoo: Zoo, dataset: Dataset, tmp_path: Path) -> None:
    file, reasons = tmp_path / "translator.safetensors", []
    for device in ("cpu", "cuda"):
        with pretended_cuda():
            translator = translator_of(name, dataset).to(device)
            save_translator(file, translator, CASES[name].config().translator, random_zoo.architecture, {})
            example = translator.read({key: value[:2].to(device) for key, value in random_zoo.parameters.items()})
            reasons.append(write_model(tmp_path / device, translator, example, file, "card", "m-1", "run", {}))
            assert {value.device.type for value in translator.state_dict().values()} == {device}
    assert reasons[0] == reasons[1]
    assert (reasons[1] is None) == (name == "mixer")
    assert {path.name for path in (tmp_path / "cpu").iterdir()} == {path.name for path in (tmp_path / "cuda").iterdir()}
