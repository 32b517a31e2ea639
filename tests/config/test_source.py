"""YAML files that include others, and the line of every fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_ray.config import Source, StudyConfig, read_source, validate_source
from kt_ray.errors import ConfigError
from kt_ray.studies.spaces import bundled
from kt_ray.studies.study_file import read_study


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        read_study(path, overrides)
    return error.value.problems


STUDY = """\
name: study
trial:
  seed: -1
space:
  # one line that says nothing
  training.epochs: {int: [3, 1]}
  translator.famly: {categorical: [mixer]}
search:
  trials: many
"""


def test_every_fault_has_its_line() -> None:
    path = write("study.yaml", STUDY)
    assert [problem.split(": ")[:2] for problem in problems(path)] == [
        ["study.yaml:3", "trial.seed"],
        ["study.yaml:6", "space.training.epochs"],
        ["study.yaml:9", "search.trials"],
    ]


def test_faults_of_the_space_are_told_beside_those_of_other_parts() -> None:
    path = write("study.yaml", STUDY.replace("seed: -1", "seed: 1").replace("[3, 1]", "[0, 3]"))
    found = problems(path)
    assert found[:2] == [
        "study.yaml:9: search.trials: input should be a valid integer, unable to parse string as an integer, "
        "got 'many'",
        "study.yaml:6: space.training.epochs: input should be greater than 0, got 0 in the space",
    ]
    assert found[2].startswith("study.yaml:7: space.translator.famly: unknown path; translator has ")


def test_points_samplers_and_grids_have_lines() -> None:
    path = write(
        "study.yaml",
        "name: study\nspace:\n  training.learning_rate: {float: [0.1, 0.2]}\nsearch:\n  sampler:\n    name: grid\n"
        "  pruner: {name: median,\n    options: {n_startup: 3}}\n  points:\n    - training.learning_rate: 0.1\n"
        "    - {training.learning_rate: 0.3,\n       training.epochs: 3}\n",
    )
    assert [problem[:60] for problem in problems(path)] == [
        "study.yaml:11: search.points.1.training.learning_rate: 0.3 l",
        "study.yaml:12: search.points.1.training.epochs: it is not se",
        "study.yaml:3: space.training.learning_rate: a grid needs a c",
        "study.yaml:7: search.pruner: median with {'n_startup': 3}: M",
    ]


def test_a_fault_of_an_override_is_not_the_files() -> None:
    path = write("study.yaml", "name: study\nsearch:\n  trials: 3\n  seed: 1\n")
    assert problems(path, "search.trials=0") == [
        "--set search.trials: search.trials: input should be greater than 0, got 0"
    ]
    assert problems(path, "search={trials: 0}")[0].startswith("--set search: search.trials: ")


def test_what_is_missing_is_told_with_the_line_of_its_section() -> None:
    write("study.yaml", "search:\n  objectives:\n    - {direction: maximise}\n")
    source = read_source(Path("study.yaml"))
    with pytest.raises(ConfigError) as error:
        validate_source(StudyConfig, source)
    assert error.value.problems[0] == "study.yaml: name: field required"
    assert error.value.problems[1].startswith("study.yaml:3: search.objectives.0.direction: ")


def test_includes_give_entries_that_those_beside_them_replace() -> None:
    write("spaces/lr.yaml", "training.learning_rate: {float: [0.1, 0.2]}\ntraining.epochs: {int: [1, 2]}\n")
    write("spaces/all.yaml", "include: lr.yaml\ntraining.epochs: {int: [3, 4]}\n")
    write("more.yaml", "loss.kl: {categorical: [0.0, 1.0]}\n")
    path = write(
        "study.yaml",
        "name: study\nspace:\n  loss.kl: {categorical: [0.5]}\n  include: [spaces/all.yaml, more.yaml]\n"
        "zoo: {include: zoo.yaml, seed: 4}\n",
    )
    write("zoo.yaml", "name: mine\nseed: 3\n")
    config = read_study(path)
    assert {name: entry.int_range or entry.categorical for name, entry in config.space.items()} == {
        "training.learning_rate": None,
        "training.epochs": (3, 4),
        "loss.kl": (0.5,),
    }
    assert (config.zoo.name, config.zoo.seed) == ("mine", 4)


@pytest.mark.parametrize("place", ["../shared.yaml", "link.yaml", "{folder}/shared.yaml", "./../mine/../shared.yaml"])
def test_a_file_elsewhere_is_included_only_from_a_folder_that_is_allowed(place: str, tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text("secret: 1\nseed: 4\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link.yaml").symlink_to(tmp_path / "shared.yaml")
    path = write("mine/study.yaml", f"name: study\nzoo: {{include: {place.format(folder=tmp_path)}}}\n")
    with pytest.raises(ConfigError, match=r"study.yaml:2: include: .* --allow-include DIR") as error:
        Source(path)
    assert "secret" not in str(error.value)
    (tmp_path / "shared.yaml").write_text("seed: 4\n")
    assert read_source(path, folders=[tmp_path]).content["zoo"] == {"seed": 4}


def test_bundled_files_are_included_from_anywhere() -> None:
    path = write("study.yaml", f"include: {bundled()['everything']}\nname: mine\n")
    assert read_study(path).name == "mine"


def test_a_fault_in_an_included_file_is_told_with_that_file() -> None:
    write("spaces/bad.yaml", "\ntraining.epochs: {int: [0, 2]}\n")
    path = write("study.yaml", "name: study\nspace: {include: spaces/bad.yaml}\n")
    assert problems(path)[0].startswith("spaces/bad.yaml:2: space.training.epochs: ")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"study.yaml": "a: 1\nspace: {include: none.yaml}\n"},
            "study.yaml:2: include: no such file: none.yaml; paths are relative to this file",
        ),
        (
            {"study.yaml": "include: b/b.yaml\n", "b/b.yaml": "x: 1\ny: {include: ../study.yaml}\n"},
            "b/b.yaml:2: include: files in a circle: study.yaml includes b.yaml includes study.yaml",
        ),
        ({"study.yaml": "\ninclude: {a: 1}\n"}, "study.yaml:2: include: expected a file or a list of files"),
        ({"study.yaml": "include: b.yaml\n", "b.yaml": "- 1\n"}, "b.yaml: expected a mapping at the top, got list"),
        ({"study.yaml": "include: b.yaml\n", "b.yaml": "a: [1\nb: 2\n"}, "b.yaml:2:2: not YAML: "),
        ({"study.yaml": "a: 1\nb: 2\na: 3\n"}, "study.yaml:3: a: given twice, first in line 1; leave one out"),
        ({"study.yaml": ""}, "study.yaml: expected a mapping at the top, got nothing"),
        ({"study.yaml": "a: \x00\n"}, "study.yaml: not YAML: special characters are not allowed"),
    ],
)
def test_what_cannot_be_read_is_one_line(files: dict[str, str], expected: str) -> None:
    for name, text in files.items():
        write(name, text)
    with pytest.raises(ConfigError) as error:
        Source(Path("study.yaml"))
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


def test_many_aliases_cost_nothing() -> None:
    rows = ["a0: &a0 {x: 1}"] + [
        f"a{n}: &a{n} {{{', '.join(f'{k}: *a{n - 1}' for k in 'abcdefghi')}}}" for n in range(1, 40)
    ]
    source = Source(write("study.yaml", "\n".join(rows) + "\n"))
    assert source.place("a39.a.b.c.x") == "study.yaml:38"  # the last part is not there


def test_one_text_holds_what_a_file_includes() -> None:
    write("b.yaml", "x: [1, 'é']\n")
    path = write("study.yaml", "# kept\nname: study\n")
    assert Source(path).text() == path.read_text()
    path = write("study.yaml", "name: study\nspace: {include: b.yaml, y: 2}\n")
    assert Source(write("elsewhere/study.yaml", Source(path).text())).content == {
        "name": "study",
        "space": {"x": [1, "é"], "y": 2},
    }
