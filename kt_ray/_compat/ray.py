"""Private parts of Ray that starting, joining and asking a cluster needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import ray_constants, services
from ray.job_submission import JobSubmissionClient

# Loggers that announce every upload of a job, and at every start that a token keeps others out.
# Wish: a `logging_level` that covers them.
JOB_LOGGERS = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env")
TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let `ray.init` use 127.0.0.1 itself in a `with`.

    Ray turns even `_node_ip_address="127.0.0.1"` into the machine's own address, then listens on every interface. It
    stays on loopback only if this constant says that the machine is part of no cluster (the default of macOS).
    Wish: `ray.init(bind_address=...)`.
    """
    with _constants(ENABLE_RAY_CLUSTER=False):
        yield


@contextmanager
def few_connection_retries() -> Iterator[None]:
    """Let `ray.init` fail soon in a `with`; the variable of the environment is read when Ray is imported.

    Wish: `ray.init(timeout=...)`.
    """
    with _constants(NUM_REDIS_GET_RETRIES=3):
        yield


def running_cluster_address() -> str | None:
    """Return the address that `ray.init("auto")` would join, `auto` if none is found.

    Wish: a public function that finds the local cluster.
    """
    address: str | None = services.get_ray_address_from_environment("auto", None)
    return address


@contextmanager
def _constants(**values: object) -> Iterator[None]:
    before = {name: getattr(ray_constants, name) for name in values}
    try:
        for name, value in values.items():
            setattr(ray_constants, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(ray_constants, name, value)


class TimedJobClient(JobSubmissionClient):
    """Ray's client of a job server with time limits (connecting, answering) in seconds on every request.

    Without limits, a dead host holds a command for minutes. Wish: `JobSubmissionClient(timeout=...)`.
    """

    def __init__(self, address: str, timeout: tuple[float, float]) -> None:
        self._timeout = timeout
        for name in JOB_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        super().__init__(address)
        self._ssl_context: Any = True  # Ray's None means the same and is deprecated in aiohttp

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=self._timeout, **options)
