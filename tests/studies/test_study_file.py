"""A study file says its kind, or its keys do; whoever reads one refuses the same faults."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kt_ray.config import DistillConfig, StudyConfig
from kt_ray.errors import ConfigError, StudyError
from kt_ray.studies.conclusion import CONCLUSION, read_conclusion
from kt_ray.studies.study_file import FILE, read_study_file, store_config, stored_config
from kt_ray.studies.submission import submit
from kt_ray.studies.validation import validate_file
from kt_ray.studies.workspace import Workspace

STUDENT = {"resnet": {"depth": 8, "width": 4}}


def written(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("content", "model"),
    [
        ({}, StudyConfig),
        ({"kind": "translation"}, StudyConfig),
        ({"student": STUDENT}, DistillConfig),
        ({"kind": "distillation"}, DistillConfig),
    ],
)
def test_a_file_is_of_the_kind_that_it_says_or_implies(content: dict[str, object], model: type, tmp_path: Path) -> None:
    assert type(read_study_file(written(tmp_path / "s.yaml", content | {"name": "s"}))) is model


@pytest.mark.parametrize("kind", ["student", 3, ["translation"], None])
def test_another_kind_is_refused(kind: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kind: expected translation or distillation"):
        read_study_file(written(tmp_path / "s.yaml", {"name": "s", "kind": kind}))


FAULTS = [
    ({"space": {"training.rate": {"float": [1.0, 2.0]}}}, "space.training.rate"),
    ({"search": {"sampler": {"name": "tpe", "options": {"n_startup": 3}}}}, "n_startup"),
    ({"student": STUDENT, "space": {"method.ft.betas": {"float": [1.0, 2.0]}}}, "space.method.ft.betas"),
]


@pytest.mark.parametrize(("content", "path"), FAULTS)
@pytest.mark.parametrize("read", [read_study_file, validate_file, submit], ids=["read", "validate", "submit"])
def test_faults_of_space_and_sampler_are_refused_before_anything_is_sent(
    read: object, content: dict[str, object], path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")  # nobody answers there
    with pytest.raises(ConfigError, match=path):
        read(written(tmp_path / "s.yaml", content | {"name": "s"}))  # type: ignore[operator]


@pytest.mark.parametrize("config", [StudyConfig(name="s"), DistillConfig(name="s")])
def test_the_file_of_a_study_is_kept_for_resume(config: StudyConfig | DistillConfig, tmp_path: Path) -> None:
    store_config(config, Workspace(tmp_path))
    assert stored_config("s", Workspace(tmp_path)) == config
    with pytest.raises(StudyError, match=r"no study 't' in .*; there are: s"):
        stored_config("t", Workspace(tmp_path))


@pytest.mark.parametrize("content", ["[]", "null", "{}", "3", '{"name": 3}', '{"kind": []}', "[" * 100_000])
def test_other_content_is_one_line(content: str, tmp_path: Path) -> None:
    directory = Workspace(tmp_path).study_directory("s")
    directory.mkdir(parents=True)
    for name, read in ((FILE, stored_config), (CONCLUSION, lambda study, place: read_conclusion(place, study))):
        (directory / name).write_text(content)
        with pytest.raises(StudyError, match=rf"{name} is damaged \(") as fault:
            read("s", Workspace(tmp_path))
        assert "\n" not in str(fault.value)
