"""Files of code as a study file names them: read as text, never run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kt_ray.config.code import CodeFile, read_code
from kt_ray.errors import ConfigError


def test_text_and_hash_are_those_of_the_file(tmp_path: Path) -> None:
    content = "α = 1\r\n".encode()
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/net.py").write_bytes(content)
    (file,) = read_code(["nets/net.py"], tmp_path)
    assert (file.name, file.text.encode()) == ("nets/net.py", content)
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert read_code([file.model_dump(mode="json")], tmp_path / "elsewhere") == (file,)
    (written_out,) = read_code([{"name": "a.py", "text": "x = 1"}], tmp_path)
    assert written_out.sha256 == hashlib.sha256(b"x = 1").hexdigest()


def outside(folder: Path) -> str:
    (folder.parent / "outside.py").write_text("")
    return "../outside.py"


def absolute(folder: Path) -> str:
    (folder / "net.py").write_text("")
    return str(folder / "net.py")


def symlink_outside(folder: Path) -> str:
    (folder.parent / "outside.py").write_text("")
    (folder / "link.py").symlink_to(folder.parent / "outside.py")
    return "link.py"


def circle(folder: Path) -> str:
    (folder / "circle.py").symlink_to(folder / "circle.py")
    return "circle.py"


def directory(folder: Path) -> str:
    (folder / "package.py").mkdir()
    return "package.py"


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe.py")
    return "pipe.py"


def large(folder: Path) -> str:
    (folder / "large.py").write_bytes(b"#" * 10_000_000)
    return "large.py"


def latin_1(folder: Path) -> str:
    (folder / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'".encode("latin-1"))
    return "latin.py"


def nul(folder: Path) -> str:
    (folder / "nul.py").write_bytes(b"x = 1\0")
    return "nul.py"


def missing(folder: Path) -> str:
    return "missing.py"


def no_python(folder: Path) -> str:
    (folder / "net.so").write_text("")
    return "net.so"


@pytest.mark.parametrize(
    "make",
    [outside, absolute, symlink_outside, circle, directory, pipe, large, latin_1, nul, missing, no_python],
    ids=lambda make: make.__name__,
)
def test_what_is_no_text_beside_the_study_file_is_one_line(tmp_path: Path, make: Callable[[Path], str]) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    name = make(folder)
    with pytest.raises(ConfigError, match=Path(name).stem) as error:
        read_code([name], folder)
    assert [problem.partition(":")[0] for problem in error.value.problems] == ["code.0"]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("entries", ["net.py", 3, [3], [{"name": "net.py"}], ["x.py"] * 17])
def test_what_is_no_list_of_files_is_refused(tmp_path: Path, entries: object) -> None:
    with pytest.raises(ConfigError, match="code"):
        read_code(entries, tmp_path)


@pytest.mark.parametrize("name", ["../a.py", "/a.py", "a/./b.py", "a//b.py", "a/../b.py", ".py", "a\nb.py", "x" * 300])
def test_a_file_that_is_written_out_has_no_name_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"code\.0"):
        read_code([{"name": name, "text": ""}], tmp_path)


def test_text_that_was_changed_has_not_its_hash(tmp_path: Path) -> None:
    file = CodeFile.model_validate({"name": "a.py", "text": "x = 1"})
    with pytest.raises(ConfigError, match="SHA-256"):
        read_code([file.model_dump() | {"text": "x = 2"}], tmp_path)
    with pytest.raises(ConfigError, match=r"a\.py"):
        read_code([file.model_dump()] * 2, tmp_path)
