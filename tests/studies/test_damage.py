"""Each kind of file of a workspace damaged: one line, never another number, and the rest is kept."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from kt_ray.cli import app
from kt_ray.config import TrialConfig
from kt_ray.data import Dataset
from kt_ray.errors import KTError
from kt_ray.networks import PaperArchitecture
from kt_ray.networks.state_file import write_state
from kt_ray.search.worker import TrialSession
from kt_ray.tracking.outbox import Outbox
from kt_ray.translation.checkpoint import load_translator
from kt_ray.translation.training import TranslatorTraining
from kt_ray.zoo.members import Zoo

Read = Callable[[Path], object]  # what a person is told from a workspace; None for a fault told in one line
CASES = 60
TRIAL = TrialConfig.model_validate(
    {"translator": {"family": "mlp"}, "training": {"epochs": 3, "steps_per_epoch": 1, "batch_size": 2}}
)
ENTRY = {"do": "log", "run": "a", "metrics": {"loss": 0.5}, "step": 1, "time": 5}
UNIQUE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}")  # plotly's names of figures


NO_LOGS = shutil.ignore_patterns("*-wal", "*-shm")  # of SQLite, which come and go with whoever reads


@pytest.fixture(scope="module")
def whole(
    finished_workspace: Path, tmp_path_factory: pytest.TempPathFactory, dataset: Dataset, random_zoo: Zoo
) -> Path:
    """The finished study, and beside it what a driver that was killed leaves: a trial's checkpoint, an outbox."""
    workspace = tmp_path_factory.mktemp("whole") / "workspace"
    shutil.copytree(finished_workspace, workspace, ignore=NO_LOGS)
    write_state(
        workspace.parent / "large.safetensors", PaperArchitecture("basic_to_simple").source_network().state_dict()
    )
    session(workspace, dataset, random_zoo).advance()
    for step in range(3):
        Outbox(workspace / "outbox.jsonl").put(ENTRY | {"step": step})
    told(workspace, "champions")  # once: a workspace that was moved finds its artifacts again
    return workspace


def session(workspace: Path, dataset: Dataset, zoo: Zoo) -> TrialSession:
    return TrialSession(TranslatorTraining(TRIAL, zoo, dataset), workspace / "trial")


def told(workspace: Path, *arguments: str) -> str | None:
    """What a command prints; None if it ends with one line about a fault."""
    result = CliRunner().invoke(app, [*arguments, "--workspace", str(workspace)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        assert isinstance(result.exception, KTError), result.exception
        assert "\n" not in str(result.exception)
        return None
    return result.stdout.replace(str(workspace), "") if result.exit_code == 0 else None


def report(workspace: Path) -> str | None:
    path = workspace.parent / "report.html"
    if told(workspace, "report", "miniature", "--output", str(path)) is None:
        return None
    return UNIQUE.sub("", path.read_text())


def translation(workspace: Path) -> bytes | None:
    large, small = workspace.parent / "large.safetensors", workspace.parent / "small.safetensors"
    done = told(workspace, "translate", "models:/kt-translator@champion", str(large), "-o", str(small))
    return None if done is None else b"".join(value.numpy().tobytes() for _, value in sorted(load_file(small).items()))


def command(*arguments: str) -> Read:
    return lambda workspace: told(workspace, *arguments, "--format", "json")


def verify(workspace: Path) -> object:
    return told(workspace, "zoo", "verify", "miniature")


def best_translator(workspace: Path) -> object:
    file = next(iter(sorted((workspace / "studies").rglob("translator.safetensors"))), None)
    if file is None:
        return None
    try:
        found = load_translator(file)
    except KTError:
        return None
    return [repr(found.config), sorted((name, value.sum()) for name, value in found.translator.state_dict().items())]


def outbox(workspace: Path) -> object:
    """Entries of the three kinds that were there; a lost one is told."""
    entries = list(Outbox(workspace / "outbox.jsonl").entries)
    return entries if len(entries) == 3 else None


READERS: dict[str, list[Read]] = {
    "optuna.db": [command("status"), command("trials", "miniature"), command("best", "miniature")],
    "mlflow.db": [command("champions"), translation],
    "studies/miniature/study.json": [lambda workspace: told(workspace, "resume", "miniature")],
    "studies/miniature/conclusion.json": [report],
    "studies/miniature/checkpoints/*/translator.safetensors": [best_translator],
    "artifacts/**/translator.safetensors": [translation],
    "zoos/miniature/zoo.json": [command("zoo", "info", "miniature"), verify],
    "zoos/miniature/index.parquet": [command("zoo", "info", "miniature"), verify],
    "zoos/miniature/shard-*": [verify],
    "outbox.jsonl": [outbox],
}
KINDS = [*READERS, "trial/*/training.safetensors", "trial/*/history.json"]
MAY_BE_MISSING = {  # an evaluation before a study's end, a trial that is no champion
    "studies/miniature/conclusion.json",
    "studies/miniature/checkpoints/*/translator.safetensors",
}


@pytest.fixture(scope="module")
def expected(whole: Path) -> dict[str, list[object]]:
    """What each reader finds in the whole workspace."""
    found = {kind: [read(whole) for read in readers] for kind, readers in READERS.items()}
    assert all(content is not None for contents in found.values() for content in contents)
    return found


@pytest.mark.parametrize("seed", range(CASES))
def test_damage_is_told_and_the_rest_kept(
    seed: int, whole: Path, expected: dict[str, list[object]], tmp_path: Path, dataset: Dataset, random_zoo: Zoo
) -> None:
    chance, kind = random.Random(seed), KINDS[seed % len(KINDS)]
    workspace = Path(shutil.copytree(whole, tmp_path / "workspace", ignore=NO_LOGS))
    shutil.copyfile(whole.parent / "large.safetensors", tmp_path / "large.safetensors")
    victim = sorted(workspace.glob(kind))[0]
    before = contents(workspace, victim)
    how = damage(victim, chance)
    if kind not in READERS:
        again, straight = (session(place, dataset, random_zoo) for place in (workspace, tmp_path / "other"))
        losses = [[one.advance().metrics["loss"] for _ in range(2)] for one in (again, straight)]
        assert losses[0] == losses[1]
    else:
        for read, content in zip(READERS[kind], expected[kind], strict=True):
            found = read(workspace)
            assert found in (None, content) or (how == "delete" and kind in MAY_BE_MISSING)
        after = contents(workspace, victim)
        assert {name: after[name] for name in before} == before


def damage(path: Path, chance: random.Random) -> str:
    """Flip a bit of the file, cut it short or delete it; returns which."""
    content, how = bytearray(path.read_bytes()), chance.choice(["flip", "flip", "truncate", "delete"])
    if how == "delete":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(content[: chance.randrange(len(content))])
    else:
        bit = chance.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
    return how


def contents(workspace: Path, victim: Path) -> dict[str, bytes]:
    """Every file but the victim and MLflow's database, which a moved workspace changes, as it is."""
    files = [path for path in workspace.rglob("*") if path.is_file() and path != victim and ".db" not in path.name]
    return {str(path.relative_to(workspace)): path.read_bytes() for path in files}
