"""What ships is whole, small, documented and packed, and `pretrained:NAME` finds it without a workspace."""

from __future__ import annotations

import configparser
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kt_ray.cli import app
from kt_ray.config import DatasetConfig
from kt_ray.data import load_dataset
from kt_ray.errors import ZooError
from kt_ray.studies import zoos
from kt_ray.zoo.bundled import ZOOS

NAMES = ["mnist5k"]


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ships in a place of its own, where any file written is seen."""
    place = tmp_path / "pretrained"
    shutil.copytree(ZOOS.directory, place)
    monkeypatch.setattr(zoos, "ZOOS", replace(ZOOS, directory=place))
    for path in [place, *place.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return place


def files(place: Path) -> set[Path]:
    return {path for path in place.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("name", NAMES)
def test_shipped_zoos_are_whole_and_have_a_card(name: str, tmp_path: Path) -> None:
    store = zoos.open_zoo(f"pretrained:{name}", tmp_path / "no workspace")
    assert store.verify() == []
    assert store.info().members == {"test": 16, "selection": 8, "train": 8}
    assert store.read().dataset_fingerprint == load_dataset(DatasetConfig(name="mnist5k")).fingerprint
    assert sum(path.stat().st_size for path in (ZOOS.directory / name).iterdir()) < 2**20
    assert "a look, not a\nbenchmark" in (ZOOS.directory / f"{name}.md").read_text()


def test_all_that_ships_is_tested_and_packed() -> None:
    assert ZOOS.names == NAMES
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    patterns = setup["options.package_data"]["kt_ray.zoo"].split(", ")
    packed = {path for pattern in patterns for path in ZOOS.directory.parent.glob(pattern) if path.is_file()}
    assert packed >= {*(ZOOS.directory / "mnist5k").iterdir(), ZOOS.directory / "mnist5k.md"}


def test_unknown_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="no zoo 'other' is bundled with kt_ray; there are: mnist5k"):
        zoos.open_zoo("pretrained:other", tmp_path)
    with pytest.raises(ZooError, match=r"no zoo '\.\./pretrained/mnist5k' is bundled"):
        zoos.open_zoo("pretrained:../pretrained/mnist5k", tmp_path)


def test_what_ships_is_evaluated_on_a_fresh_machine(read_only: Path, tmp_path: Path) -> None:
    """With blocks fitted to each member; the package's directory stays as it is and no workspace is made."""
    before = files(read_only)
    arguments = ["evaluate", "pretrained:basic_to_simple", "pretrained:mnist5k", "--fit-steps", "1"]
    place = ["--workspace", str(tmp_path / "workspace"), "--format", "json"]
    result = CliRunner().invoke(app, [*arguments, *place])
    assert result.exit_code == 0, result.output
    evaluation = json.loads(result.output)
    means = {row["name"]: row["mean"] for row in evaluation["rows"]}
    assert means["translated"] > means["trained target"] > means["pruned block"]
    assert [name for name in means if name.startswith("fitted")] == [
        "fitted on training images, 1 steps",
        "fitted on random strokes, 1 steps",
        "fitted on BN statistics, 1 steps",
    ]
    assert (evaluation["members"], evaluation["member_count"]) == ("selection", 8)
    assert files(read_only) == before
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize("command", ["evaluate", "translate"])
def test_help_names_what_ships(command: str) -> None:
    text = re.sub(r"[\s│]", "", CliRunner().invoke(app, [command, "--help"]).output)  # words may be folded
    assert "pretrained:basic_to_simple" in text
    assert ("pretrained:mnist5k" in text) == (command == "evaluate")
