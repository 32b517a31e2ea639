"""Values in study files are what they look like; what is wrong with them is one fault of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kt_ray.config import StudyConfig
from kt_ray.config.base import parse_overrides, read_source, validate_source
from kt_ray.config.yaml_rules import parse
from kt_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("2024-02-30", "2024-02-30"),
        ("0x_", "0x_"),
        ("1e-3", 0.001),
        ("1e1", 10.0),
        ("-.inf", float("-inf")),
        ("1_000", 1000),
        ("0o17", 15),
        ("0xff", 255),
        ("-7", -7),
        ("true", True),
        ("null", None),
        ("", None),
        ("~", None),
        ("'1'", "1"),
        (".5", 0.5),
        ("3.", 3.0),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert parse(text) == value
    assert type(parse(text)) is type(value)


@pytest.mark.parametrize("text", ["!!int abc", "!!float x", "1" * 5_000, "!!timestamp 2024-02-30", "!!bool maybe"])
def test_values_that_cannot_be_made_are_faults_of_the_text(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse(text)


def test_merged_aliases_are_bounded() -> None:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40)]
    with pytest.raises(yaml.YAMLError):
        parse("\n".join(lines))


@pytest.mark.parametrize("override", ["search.trials=!!int abc", "search.trials=" + "[" * 3_000])
def test_overrides_that_cannot_be_read_are_faults(override: str) -> None:
    with pytest.raises(ConfigError):
        parse_overrides([override])


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ("name: " + "a" * 300, "name"),
        ("search: {trials: true}", "search.trials"),
        ("search: {trials: yes}", "search.trials"),
        ("search: {hours: 1:30}", "search.hours"),
        ("trial: {training: {learning_rate: true}}", "trial.training.learning_rate"),
        ("model_name: team/translator", "model_name"),
        ("model_name: 'a:b'", "model_name"),
        ("project: ' '", "project"),
        ("storage: {study: 'sqlite:///:memory:'}", "storage.study"),
        ("storage: {study: optuna.db}", "storage.study"),
        ("include: " + "a" * 5_000, "include"),
        ("space: {training.learning_rate: {float: [0.0001, .inf]}}", "space.training.learning_rate"),
        ("space: {training.learning_rate: {float: [0, 1], step: 1e-300}}", "space.training.learning_rate"),
        ("space: {trial.seed: {int: [0, 100000000000000000000000]}}", "space.trial.seed"),
        ("\n".join(f"k{number}: 1" for number in range(6_000)), "entries"),
    ],
)
def test_wrong_values_are_told_with_their_path(entry: str, path: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(entry if entry.startswith("name:") else f"name: study\n{entry}")
    with pytest.raises(ConfigError, match=path) as raised:
        validate_source(StudyConfig, read_source(file))
    assert len(str(raised.value)) < 2_000


@pytest.mark.parametrize(("encoding", "named"), [("utf-16", "UTF-16"), ("latin-1", "UTF-8")])
def test_other_encodings_are_named(encoding: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_bytes("name: études".encode(encoding))
    with pytest.raises(ConfigError, match=named):
        validate_source(StudyConfig, read_source(file))
