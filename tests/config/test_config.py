"""Configuration: all faults at once, each with its path, the value and what was expected."""

from pathlib import Path

import pytest

from kt_ray.config import DistillConfig, StudyConfig, read_source, validate, validate_source
from kt_ray.errors import ConfigError


def problems(content: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        validate(StudyConfig, content)
    return error.value.problems


def test_defaults_are_a_valid_study() -> None:
    config = validate(StudyConfig, {"name": "study"})
    assert config == validate(StudyConfig, config.model_dump(mode="json"))


def test_all_faults_are_told_at_once() -> None:
    assert problems({"nam": "x", "search": {"trials": "no"}, "pair": {"nam": "x"}, "trial": {"seed": -1}}) == [
        "name: field required",
        "pair.name: field required",
        "pair.nam: unknown key",
        "trial.seed: input should be greater than or equal to 0, got -1",
        "search.trials: input should be a valid integer, unable to parse string as an integer, got 'no'",
        "nam: unknown key",
    ]


def test_a_study_needs_selection_images() -> None:
    assert problems({"name": "x", "dataset": {"selection_images": 0}}) == [
        "dataset: selection_images must be above 0: trials are compared by their accuracy on these images"
    ]
    assert validate(DistillConfig, {"name": "x", "dataset": {"selection_images": 0}}).dataset.selection_images == 0


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        ({"float": [3, 1]}, "`low` must not be above `high`, got low=3.0, high=1.0"),
        ({"float": [0, 1], "log": True}, "`low` must be above 0 for log, got low=0.0"),
        ({"float": [1, 2], "int": [1, 2]}, "exactly one of float, int, categorical must be set, got float and int"),
        ({}, "exactly one of float, int, categorical must be set, got none"),
        ({"categorical": []}, "`categorical` must name at least one choice, got an empty list"),
        ({"categorical": ["a"], "log": True}, "`log` and `step` belong to float and int, not to categorical"),
        ({"int": [1, 8], "log": True, "step": 2}, "`log` and `step` exclude each other"),
    ],
)
def test_bad_distributions(distribution: dict[str, object], expected: str) -> None:
    assert problems({"name": "x", "space": {"trial.seed": distribution}}) == [f"space.trial.seed: {expected}"]


def test_a_distribution_keeps_its_words_through_a_dump() -> None:
    content = {"name": "x", "space": {"seed": {"int": [1, 3]}, "loss": {"categorical": ["a", 1, None, True]}}}
    space = validate(StudyConfig, content).model_dump(mode="json")["space"]
    assert space["seed"]["int"] == [1, 3]
    assert space["loss"]["categorical"] == ["a", 1, None, True]


def test_overrides_reach_nested_paths(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: x\nsearch: {trials: 3}\n")
    config = validate_source(StudyConfig, read_source(path, ["search.trials=7", "trial.translator.mixer.size=tiny"]))
    assert config.search.trials == 7
    assert config.trial.translator.mixer.size == "tiny"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("- 1\n", "expected a mapping at the top, got list"),
        ("a: [1\nb: 2\n", "study.yaml:2:2: not YAML"),
        ("a: !!python/object/apply:os.mkdir [x]\n", "not YAML: could not determine a constructor"),
    ],
)
def test_files_that_are_not_study_files(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=str(path)) as error:
        validate_source(StudyConfig, read_source(path))
    assert expected in str(error.value)


def test_a_missing_file_and_a_malformed_override(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file: .*none.yaml; `kt-ray spaces list`"):
        validate_source(StudyConfig, read_source(tmp_path / "none.yaml"))
    path = tmp_path / "study.yaml"
    path.write_text("name: x\n")
    with pytest.raises(ConfigError, match="override 'trials' is not of the form path=value"):
        validate_source(StudyConfig, read_source(path, ["trials"]))
