"""The public API: its names, its light import, the examples in its docstrings, objects that print themselves."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import kt_ray as kt

PUBLIC = (
    "KTError",
    "__version__",
    "build_zoo",
    "evaluate",
    "load",
    "load_code",
    "load_dataset",
    "open_study",
    "open_zoo",
    "register",
    "resume",
    "run",
    "train",
    "translate",
)
HEAVY = ("torch", "ray", "mlflow", "optuna", "numpy", "pandas", "pyarrow", "pydantic")
FUNCTIONS = tuple(name for name in PUBLIC if inspect.isfunction(getattr(kt, name)))


def test_the_public_names_are_these() -> None:
    """A new name is a promise: it is added here on purpose."""
    assert tuple(kt.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(kt))
    assert all(getattr(kt, name) is not None for name in PUBLIC)


def test_a_private_name_is_refused_with_the_public_ones() -> None:
    with pytest.raises(AttributeError, match="open_zoo"):
        kt.runner  # noqa: B018


def test_importing_loads_nothing_heavy() -> None:
    code = f"import sys, kt_ray; dir(kt_ray); print(*(name for name in {HEAVY} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    function = getattr(kt, name)
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert example.examples, f"the docstring of {name} has no example"
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example).failed == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_name_every_argument(name: str) -> None:
    function = getattr(kt, name)
    text = inspect.getdoc(function) or ""
    assert all(section in text for section in ("Args:", "Returns:", "Raises:", "Example:"))
    assert [argument for argument in inspect.signature(function).parameters if f"{argument}:" not in text] == []


def test_objects_print_themselves_on_a_screen() -> None:
    zoo = kt.open_zoo("pretrained:mnist5k")
    for shown in (kt.load_dataset(), zoo, zoo.read(), kt.load("pretrained:basic_to_simple")):
        assert 2 < len(repr(shown).splitlines()) < 40
        assert shown._repr_html_().startswith("<table>")


def test_a_translated_network_is_saved_and_translated_again_from_its_file(tmp_path: Path) -> None:
    zoo = kt.open_zoo("pretrained:mnist5k").read()
    translator = kt.train(
        zoo, kt.load_dataset(), translator={"family": "mlp"}, training={"epochs": 1, "steps_per_epoch": 1}
    )
    network = {name: value[0] for name, value in zoo.network().items()}
    small = kt.translate(translator, network)
    again = kt.translate(translator.save(tmp_path / "translator.safetensors"), network)
    assert all(bool((again.state[name] == value).all()) for name, value in small.state.items())
    assert small.save(tmp_path / "small.safetensors").is_file()


def test_a_zoo_of_other_images_is_refused() -> None:
    with pytest.raises(kt.KTError, match="fingerprint"):
        kt.train("pretrained:mnist5k", kt.load_dataset(train_images=100))


@pytest.mark.slow
def test_a_zoo_built_in_this_process_has_the_members_of_one_built_by_actors(tmp_path: Path, ray_session: None) -> None:
    dataset = kt.load_dataset(train_images=128, selection_images=64)
    brief = {"epochs": 1, "steps": 2}
    settings = {"members": {"train": 2, "selection": 1, "test": 1}, "recipe": {"source": brief, "target": brief}}
    here = kt.build_zoo(tmp_path / "here", dataset, **settings).read()
    actors = kt.build_zoo(tmp_path / "actors", dataset, ray=True, **settings).read()
    assert here.fingerprint == actors.fingerprint
    assert all(value.equal(actors.parameters[name]) for name, value in here.parameters.items() if name[:6] == "source")
