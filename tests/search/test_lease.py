"""One driver a study: refused beside a living one, let in after a dead one."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import optuna
import pytest

from kt_ray.errors import StudyError
from kt_ray.search import lease as lease_module
from kt_ray.search.lease import ATTRIBUTE, Holder, hold_lease, holder_of


@pytest.fixture
def study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(study_name="s")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "BEAT", 0.1)
    monkeypatch.setattr(lease_module, "SETTLE", 0.05)
    monkeypatch.setattr(lease_module, "PATIENCE", 2.5)


def elsewhere(**changed: object) -> Holder:
    """A holder on another machine."""
    return replace(Holder.here(), host="node7", machine="another boot", token="theirs", **changed)  # type: ignore[arg-type]


def test_it_is_held_while_driving_and_free_afterwards(study: optuna.Study) -> None:
    with hold_lease(study):
        holder = holder_of(study)
        assert holder is not None
        assert holder.pid == os.getpid()
    assert holder_of(study) is None


def test_a_second_driver_is_refused_by_name(study: optuna.Study) -> None:
    with (
        hold_lease(study),
        pytest.raises(StudyError, match=rf"study s is being searched by process {os.getpid()} of \w+ on"),
    ):
        hold_lease(study).__enter__()
    with hold_lease(study):
        pass


def test_a_dead_process_of_this_machine_is_followed_at_once(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    study.set_user_attr(ATTRIBUTE, asdict(replace(Holder.here(), pid=dead.pid, token="theirs")))
    monkeypatch.setattr(lease_module, "PATIENCE", None)  # watching the holder would raise TypeError
    with hold_lease(study):
        pass


def test_a_process_that_has_taken_a_dead_ones_number_is_not_the_holder(study: optuna.Study) -> None:
    study.set_user_attr(ATTRIBUTE, asdict(replace(Holder.here(), born="1", token="theirs")))
    with hold_lease(study):
        pass


def test_a_silent_holder_elsewhere_counts_as_dead_after_a_while(study: optuna.Study) -> None:
    study.set_user_attr(ATTRIBUTE, asdict(elsewhere()))
    with hold_lease(study):
        pass


def test_a_holder_elsewhere_that_moves_is_not_disturbed(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "PATIENCE", 300.0)
    study.set_user_attr(ATTRIBUTE, asdict(elsewhere()))
    ended = threading.Event()

    def beat() -> None:
        for number in itertools.count(1):
            if ended.wait(0.3):
                return
            study.set_user_attr(ATTRIBUTE, asdict(elsewhere(beat=number)))

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(StudyError, match="on node7"):
            hold_lease(study).__enter__()
    finally:
        ended.set()
        beating.join()


def test_of_two_that_start_at_once_one_is_refused(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "SETTLE", 0.5)
    results: list[str] = []
    together, refused = threading.Barrier(2), threading.Event()

    def drive() -> None:
        together.wait()
        try:
            with hold_lease(study):
                refused.wait(300)
                results.append("drove")
        except StudyError:
            results.append("refused")
            refused.set()

    threads = [threading.Thread(target=drive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["drove", "refused"]


def test_a_driver_learns_that_it_was_taken_for_dead(study: optuna.Study) -> None:
    with hold_lease(study) as lease:
        study.set_user_attr(ATTRIBUTE, asdict(elsewhere()))
        deadline = time.monotonic() + 300
        while lease.lost is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert lease.lost is not None
        assert lease.lost.host == "node7"
    holder = holder_of(study)
    assert holder is not None
    assert holder.token == "theirs"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_that_nobody_has_waited_for_is_followed_at_once(study: optuna.Study) -> None:
    killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    theirs = replace(Holder.here(), pid=killed.pid, born=lease_module._born(killed.pid), token="theirs")
    study.set_user_attr(ATTRIBUTE, asdict(theirs))
    assert theirs.gone() is False
    killed.kill()
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    with hold_lease(study):
        pass
    killed.communicate()
