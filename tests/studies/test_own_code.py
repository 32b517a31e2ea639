"""A study of a person's own network: its code goes where the study goes, and another text is another study."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from kt_ray.config import StudyConfig
from kt_ray.config.code import hashes
from kt_ray.errors import StudyError
from kt_ray.search.storage import open_storage
from kt_ray.search.study import SearchStudy
from kt_ray.search.study_identity import ATTRIBUTE, FILES
from kt_ray.studies.console import StudyConsole
from kt_ray.studies.runner import run_study, search_study
from kt_ray.studies.workspace import Workspace
from tests.own_network import network_code
from tests.studies.miniature import finished, kt_ray

STUDY = """
name: own
code: [net.py]
network: mine
pair: halved
dataset: {name: mnist5k, train_images: 128, selection_images: 50}
zoo:
  members: {train: 2, selection: 1, test: 1}
  recipe: {source: {epochs: 1, steps: 1}, target: {epochs: 1, steps: 1}}
trial: {translator: {family: mlp}, training: {epochs: 1, steps_per_epoch: 1, batch_size: 2}}
space: {training.learning_rate: {float: [0.0001, 0.01]}}
search: {trials: 1, sampler: {name: random}}
ray: {cpus: 2}
"""


@pytest.mark.slow
def test_a_study_needs_its_file_once(tmp_path: Path, workspace: Path) -> None:
    sent, marks = tmp_path / "sent", tmp_path / "marks"
    sent.mkdir()
    marks.mkdir()
    (sent / "net.py").write_text(network_code(f"Path({str(marks)!r}, str(os.getpid())).touch()"))
    (sent / "study.yaml").write_text(STUDY)
    driver = kt_ray("run", str(sent / "study.yaml"), "--allow-code", "--accept-weak", workspace=workspace)
    finished(driver)
    assert len({path.name for path in marks.iterdir()} - {str(driver.pid)}) >= 2  # a zoo actor and a trial at least

    with (sent / "net.py").open("a") as file:
        file.write("# changed")
    refused = kt_ray("run", str(sent / "study.yaml"), "--allow-code", workspace=workspace)
    output, _ = refused.communicate(timeout=300)
    assert refused.returncode == 2
    assert re.search(r"net\.py: SHA-256 [0-9a-f]{64} before, [0-9a-f]{64} now", output)

    shutil.rmtree(sent)
    shutil.rmtree(marks)
    marks.mkdir()
    driver = kt_ray("resume", "own", "--add", "1", "--accept-weak", workspace=workspace)
    finished(driver)
    assert {path.name for path in marks.iterdir()} > {str(driver.pid)}


def test_other_code_is_refused_before_anything_is_stored(workspace: Path) -> None:
    place = Workspace.open(workspace)
    before, now, none = (
        StudyConfig.model_validate({"name": "own", "code": [{"name": "net.py", "text": text}] if text else []})
        for text in ("x = 1", "x = 2", "")
    )
    study = SearchStudy(before, open_storage(place.study_storage)).optuna
    study.set_user_attr(ATTRIBUTE, {FILES: hashes(before.code)})
    for config in (now, none):
        told = (
            rf"net\.py: SHA-256 {hashes(before.code)['net.py']} before, {hashes(config.code).get('net.py', 'none')} now"
        )
        for run in (run_study, search_study):
            with pytest.raises(StudyError, match=told):
                run(config, place, StudyConsole(quiet=True))
    assert not place.study_directory("own").exists()
