from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import requests
import torch
import yaml
from mlflow.models import Model
from torch import nn

from kt_ray.config import TranslatorConfig
from kt_ray.networks import State
from kt_ray.tracking.model import write_model
from kt_ray.tracking.pyfunc import flat
from kt_ray.tracking.ui import stop
from kt_ray.translation.checkpoint import load_translator, save_translator
from kt_ray.translation.families import FAMILIES
from kt_ray.translation.translator import build_translator
from kt_ray.zoo.members import Zoo
from tests.tracking.servers import free_port

SMALL = {
    "mixer": {"mixer": {"size": "tiny"}},
    "neuron_transformer": {"neuron_transformer": {"width": 16, "depth": 1}},
}
REFINED = {"refinement": {"steps": 3, "probes": 4, "probe_sets": 2, "width": 8, "starts": 2}}
STEPS_OF_ADAM = {"refinement": {"steps": 3, "probes": 4, "probe_sets": 2, "trained": False}}
NEWTON = {"refinement": {"steps": 2, "method": "newton", "products": 2, "probes": 4, "trained": False}}
GAUSS_NEWTON = {"refinement": {"steps": 2, "method": "gauss_newton", "probes": 4, "trained": False}}
PROJECTED = {"base": "projected", "projection": {"probes": 4, "images": "strokes"}}

# Loads a model in a process that cannot import kt_ray, and writes what it predicts.
BARE = """
import importlib.util, pathlib, sys
sys.path = [path for path in sys.path if not pathlib.Path(path or ".", "kt_ray").is_dir()]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
assert importlib.util.find_spec("kt_ray") is None
import mlflow, numpy as np
model, rows, flavour = sys.argv[1], np.load(sys.argv[2]), sys.argv[4]
if flavour == "pytorch":
    import torch
    outputs = mlflow.pytorch.load_model(model)(torch.from_numpy(rows)).detach().numpy()
    assert "kt_ray" not in sys.modules
else:
    outputs = mlflow.pyfunc.load_model(model).predict(rows)
np.save(sys.argv[3], outputs)
"""


def written(options: dict[str, Any], zoo: Zoo, directory: Path) -> tuple[State, np.ndarray, str | None]:
    """A model of a translator with `options`: five blocks, their translation, why it was not exported."""
    torch.manual_seed(0)
    architecture, config = zoo.architecture, TranslatorConfig.model_validate(options)
    translator = build_translator(config, architecture).eval().requires_grad_(False)
    blocks = {name: value[:5] for name, value in translator.read(zoo.parameters).items()}
    file = directory / "translator.safetensors"
    save_translator(file, translator, config, architecture, {})
    example = {name: value[:1] for name, value in blocks.items()}
    reason = write_model(directory / "model", translator, example, file, "# A translator\n", "m-1", "run", {})
    with torch.no_grad():
        return blocks, flat(translator(blocks)).numpy(), reason


def predicted_elsewhere(directory: Path, rows: torch.Tensor, flavour: str = "pyfunc") -> np.ndarray:
    """What the model in `directory / "model"` gives in a process that cannot import kt_ray."""
    np.save(directory / "rows.npy", rows.numpy())
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    command = [sys.executable, "-c", BARE, "model", "rows.npy", "out.npy", flavour]
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return np.load(directory / "out.npy")


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("base", ["pruned", "merged"])
def test_every_family_is_exported(family: str, base: str, random_zoo: Zoo, tmp_path: Path) -> None:
    options = {"family": family, "base": base, **SMALL.get(family, {})}
    assert written(options, random_zoo, tmp_path)[2] is None  # the exported graph was compared with the translator


@pytest.mark.parametrize("base", get_args(TranslatorConfig.model_fields["base"].annotation))
def test_a_translator_on_any_base_has_a_flavour(base: str, random_zoo: Zoo, tmp_path: Path) -> None:
    written({"base": base, **SMALL["mixer"]}, random_zoo, tmp_path)
    assert "python_function" in Model.load(str(tmp_path / "model")).flavors


@pytest.mark.parametrize("flavour", ["pytorch", "pyfunc"])
def test_an_exported_model_loads_where_this_package_is_missing(flavour: str, random_zoo: Zoo, tmp_path: Path) -> None:
    options = {"family": "graph", "context": "network", "base": "merged", "batch_norm": "dropped"}
    blocks, expected, reason = written(options, random_zoo, tmp_path)
    assert reason is None
    for rows in (flat(blocks), flat(blocks)[:1]):
        found = predicted_elsewhere(tmp_path, rows, flavour)
        np.testing.assert_allclose(found, expected[: len(rows)], rtol=1e-5, atol=1e-6)
    text = (tmp_path / "model" / "README.md").read_text()
    assert "kt_ray is not needed" in text
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "kt_ray"
    again = load_translator(tmp_path / "model" / "translator.safetensors").translator
    with torch.no_grad():
        np.testing.assert_array_equal(flat(again(blocks)).numpy(), expected)


@pytest.mark.parametrize(
    "options",
    [REFINED, STEPS_OF_ADAM, NEWTON, GAUSS_NEWTON, PROJECTED],
    ids=["learned steps", "steps of Adam", "steps of Newton", "steps of Gauss-Newton", "least squares"],
)
def test_what_cannot_be_exported_loads_with_the_code_beside_it(
    options: dict[str, Any], random_zoo: Zoo, tmp_path: Path
) -> None:
    blocks, expected, reason = written({**SMALL["mixer"], **options}, random_zoo, tmp_path)
    assert reason
    np.testing.assert_allclose(predicted_elsewhere(tmp_path, flat(blocks)), expected, rtol=1e-4, atol=1e-5)
    assert "`code/`" in (tmp_path / "model" / "README.md").read_text()
    assert not list(tmp_path.rglob("*.pkl"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [SMALL["mixer"], {**SMALL["mixer"], **STEPS_OF_ADAM}], ids=["exported", "with code"]
)
def test_models_are_served_on_loopback(options: dict[str, Any], random_zoo: Zoo, tmp_path: Path) -> None:
    blocks, expected, _ = written({**SMALL["mixer"], **options}, random_zoo, tmp_path)
    port = free_port()
    command = f"-m mlflow models serve -m model --env-manager local --host 127.0.0.1 --port {port}"
    programs = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # MLflow starts `uvicorn`
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, *command.split()],
            cwd=tmp_path,
            env=os.environ | programs,
            start_new_session=True,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                requests.get(f"http://127.0.0.1:{port}/ping", timeout=60).raise_for_status()
                break
            except requests.RequestException:
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.3)
        body = {"inputs": flat(blocks).tolist()}
        answer = requests.post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=300)
        answer.raise_for_status()
        np.testing.assert_allclose(np.array(answer.json()["predictions"]), expected, rtol=1e-4, atol=1e-5)
    finally:
        stop(server, patience=1)


def test_a_model_that_takes_only_as_many_blocks_as_its_example_is_not_kept(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def forward(self, source: State) -> State:
            return {name: value / len(value) for name, value in source.items()}

    file = tmp_path / "translator.safetensors"
    file.touch()
    reason = write_model(tmp_path / "model", Counting(), {"a": torch.randn(3, 2)}, file, "", "m-1", "run", {})
    assert reason is not None
    kept = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert kept == ["MLmodel", "README.md", "translator.safetensors"]
