"""A function as a Ray task: placed by what it asks for, heard while it runs, its errors its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import ray

from kt_ray.errors import ConfigError, ResourceError
from kt_ray.jobs.remote import ray_options, run_remotely


def placed(device: str, report: Any, words: list[str]) -> tuple[str, int, dict[str, float]]:
    for word in words:
        report(word)
    return device, os.getpid(), ray.get_runtime_context().get_assigned_resources()


def test_a_function_runs_elsewhere_with_what_it_asked_for(ray_session: None) -> None:
    heard: list[str] = []
    device, process, assigned = run_remotely(placed, {"CPU": 2}, {}, heard.append, ["first", "second"])
    assert (device, assigned) == ("cpu", {"CPU": 2.0})
    assert process != os.getpid()
    assert heard == ["first", "second"]


def refuse(device: str, report: Any) -> None:
    raise ConfigError("no layer 'stage9'")


def test_its_error_is_raised_here_as_it_was_raised_there(ray_session: None) -> None:
    with pytest.raises(ConfigError) as raised:
        run_remotely(refuse, {"CPU": 1}, {}, print)
    assert str(raised.value) == "no layer 'stage9'"


def die_once(device: str, report: Any, mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return "done"


def test_a_task_whose_device_broke_is_run_again_by_another_process(ray_session: None, tmp_path: Path) -> None:
    assert run_remotely(die_once, {"CPU": 1}, {}, print, tmp_path / "mark") == "done"


def die(device: str, report: Any) -> None:
    os._exit(1)


@pytest.mark.slow  # five workers start
def test_a_task_that_dies_again_and_again_is_one_line(ray_session: None) -> None:
    with pytest.raises(ResourceError, match=r"^a Ray task that takes \{'CPU': 1\} was lost: .*$"):
        run_remotely(die, {"CPU": 1}, {}, print)


def test_options_are_the_demand_in_rays_words() -> None:
    demand = {"CPU": 0.5, "GPU": 0.25, "tpu": 1.0}
    assert ray_options(demand, {"zone": "a"}) == {
        "num_cpus": 0.5,
        "num_gpus": 0.25,
        "resources": {"tpu": 1.0},
        "label_selector": {"zone": "a"},
    }
    assert ray_options({"CPU": 1}) == {"num_cpus": 1, "num_gpus": 0, "resources": {}}
