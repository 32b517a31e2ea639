"""The public API as a notebook calls it: in a running event loop, in a thread, with Ray started by the user."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import ray

import kt_ray as kt
from kt_ray.studies.console import StudyConsole
from kt_ray.zoo.progress import BuildProgress
from tests.studies.miniature import MINIATURE


def test_a_study_runs_in_a_thread_and_in_a_running_event_loop(tmp_path: Path, ray_session: None) -> None:
    async def cells() -> kt.Study:
        options = {"overrides": ["search.trials=1"], "accept_weak": True, "progress": False}
        await asyncio.to_thread(kt.run, MINIATURE, tmp_path, **options)
        return kt.resume("miniature", tmp_path, add=1, accept_weak=True, progress=False)

    study = asyncio.run(cells())
    assert len(study.trials()) == 2
    assert study.conclusion is not None
    assert study._repr_html_().startswith("<table>")
    assert ray.is_initialized()  # it was the user's


def test_a_notebook_has_one_line_that_moves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("kt_ray._io.display", "kt_ray.studies.console"):
        monkeypatch.setattr(f"{module}.in_notebook", lambda: True)
    with StudyConsole() as console:
        for done in (1, 24):
            console.building(BuildProgress(24, done, 1.0, 100.0, 9.0, 0.9, 2))
    first, second = capsys.readouterr().out.removeprefix("\r").split("\r")
    assert first.startswith("zoo: members 1 of 24")
    assert second.startswith("zoo: members 24 of 24")
    assert second.count("\n") == 1
