"""Temporary folders: what a process that was killed left is removed by the next, that of others is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kt_ray._io.scratch import make_scratch, scratch_directory, sweep

LEAVE = (
    "import os, signal, sys; from pathlib import Path; from kt_ray._io.scratch import make_scratch; "
    "make_scratch('.tune-', Path(sys.argv[1])).joinpath('half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
)


def test_what_a_killed_process_left_is_swept_by_the_next(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LEAVE, str(tmp_path)], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    kept = make_scratch(".tune-", tmp_path)
    assert list(tmp_path.iterdir()) == [kept]


def test_folders_of_living_processes_other_hosts_and_other_makers_stay(tmp_path: Path) -> None:
    mine = make_scratch(".tune-", tmp_path)
    (others := tmp_path / ".tune-elsewhere.example-1-abc").mkdir()
    (unnamed := tmp_path / ".tune-abcdef").mkdir()
    sweep(".tune-", tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, others, unnamed])


def test_a_folder_is_gone_after_its_use(tmp_path: Path) -> None:
    with scratch_directory(parent=tmp_path) as directory:
        (directory / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []
