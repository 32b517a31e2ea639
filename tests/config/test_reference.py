"""What `kt-ray spaces explain` says of a key comes from the models, and names code that is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kt_ray.cli import app
from kt_ray.config import DistillTrialConfig, Distribution, TrialConfig
from kt_ray.config.reference import MODELS, READERS, all_keys, find
from kt_ray.errors import ConfigError
from kt_ray.search.space import Distributions
from kt_ray.search.space_problems import problems


def test_a_key_is_described_by_its_path_in_a_space_or_in_a_file() -> None:
    (key,) = find("loss.kl")
    assert find("trial.loss.kl") == [key]
    facts = key.facts()
    assert facts.items() >= {"type": "number", "range": "≥ 0", "default": "0.0", "in a space": "loss.kl"}.items()
    assert facts["description"] == "KL from the source's predictions, through the frozen head"
    assert facts["read by"] == "kt_ray.translation.losses"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("translator.mixer.width", {"type": "integer or null", "range": "> 0", "default": "null"}),
        ("training.warmup", {"range": "≥ 0, < 1", "type": "number"}),
        ("name", {"default": "required", "range": "length ≤ 100"}),
        ("search.objectives.direction", {"type": "`maximize` or `minimize`", "default": "maximize"}),
        ("translator.batch_norm", {"description": "dropped is the paper's"}),
    ],
)
def test_types_ranges_and_defaults(path: str, expected: dict[str, str]) -> None:
    assert find(path)[0].facts().items() >= expected.items()


def test_a_path_with_two_meanings_has_both() -> None:
    assert [(key.kinds, key.path) for key in find("training.learning_rate")] == [
        (("translation",), "trial.training.learning_rate"),
        (("distillation",), "training.learning_rate"),
    ]
    assert [key.kinds for key in find("search.pruner")] == [("translation", "distillation")]


def test_what_can_be_sampled_is_what_a_space_takes() -> None:
    anything = Distribution.model_validate({"categorical": ["no value of any field"]})
    for kind, base in (("translation", TrialConfig()), ("distillation", DistillTrialConfig())):
        for key in all_keys(kind):
            if key.sampled_as is not None:
                space: Distributions = {key.sampled_as: anything}
                assert "unknown path" not in " ".join(problems(space, base))


@pytest.mark.parametrize("section", READERS)
def test_the_code_that_reads_a_section_names_its_model(section: str) -> None:
    key = next(key for kind in MODELS for key in all_keys(kind) if key.path == section)
    spec = importlib.util.find_spec(key.reader)
    module = Path(str(spec and spec.origin))
    files = module.parent.rglob("*.py") if module.name == "__init__.py" else [module]
    text = "".join(file.read_text() for file in files)
    names = [model.__name__.replace("DistillSearch", "Search") for model in key.inner] or [section]
    assert any(name in text for name in names)


@pytest.mark.parametrize(("path", "near"), [("loss.kll", "loss.kl"), ("learning_rate", "training.learning_rate")])
def test_a_wrong_path_names_the_nearest(path: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"no key '{path}' .*{near}"):
        find(path)


@pytest.mark.parametrize("path", ["translator.mixer", "search.pruner", "space", "loss.kl"])
def test_the_command_fits_the_terminal(path: str) -> None:
    done = CliRunner().invoke(app, ["spaces", "explain", path], env={"COLUMNS": "60"})
    assert done.exit_code == 0
    assert path in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 60
