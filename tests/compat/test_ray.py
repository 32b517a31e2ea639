"""What `kt_ray._compat.ray` and `numba` take from private parts does what is said of it; clusters: `tests/jobs`."""

from __future__ import annotations

import importlib
from pathlib import Path

import numba
import pytest
from ray._private import ray_constants
from ray.dashboard.modules.dashboard_sdk import SubmissionClient
from ray.job_submission import JobSubmissionClient

from kt_ray._compat.numba import cache_directory
from kt_ray._compat.ray import JOB_LOGGERS, TOKEN_LOGGER, TimedJobClient, few_connection_retries, on_loopback


def test_constants_that_starting_and_joining_set_are_read_by_ray() -> None:
    before = ray_constants.ENABLE_RAY_CLUSTER, ray_constants.NUM_REDIS_GET_RETRIES
    with on_loopback(), few_connection_retries():
        assert (ray_constants.ENABLE_RAY_CLUSTER, ray_constants.NUM_REDIS_GET_RETRIES) == (False, 3)
    assert before == (ray_constants.ENABLE_RAY_CLUSTER, ray_constants.NUM_REDIS_GET_RETRIES)
    private = Path(ray_constants.__file__).parent
    assert "ray_constants.ENABLE_RAY_CLUSTER" in (private / "services.py").read_text()
    assert "ray_constants.NUM_REDIS_GET_RETRIES" in (private / "node.py").read_text()


@pytest.mark.parametrize("name", [*JOB_LOGGERS, TOKEN_LOGGER])
def test_loggers_are_those_of_modules(name: str) -> None:
    importlib.import_module(name)


def test_every_request_of_the_job_client_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    assert issubclass(JobSubmissionClient, SubmissionClient)
    monkeypatch.setattr(TimedJobClient.__mro__[1], "__init__", lambda self, address: None)
    monkeypatch.setattr(SubmissionClient, "_do_request", lambda self, *args, **options: asked.append(options))
    client = TimedJobClient("http://127.0.0.1:1", (1.0, 2.0))
    client._do_request("GET", "/api/version")
    assert asked == [{"timeout": (1.0, 2.0)}]


def test_numba_says_where_it_keeps_what_it_compiles(tmp_path: Path) -> None:
    @numba.njit(cache=True)  # type: ignore[untyped-decorator]
    def double(value: int) -> int:
        return 2 * value

    assert cache_directory(double).name
