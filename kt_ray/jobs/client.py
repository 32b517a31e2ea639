"""A connection to a Ray cluster's job server: quick to say that nothing answers, one line for each fault."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError

from kt_ray._compat.ray import TimedJobClient
from kt_ray._io.text import first_line
from kt_ray.errors import ResourceError
from kt_ray.jobs.connection import WANTS_TOKEN

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
READY_SECONDS, RETRY_SECONDS = 60.0, 2.0
LATER = "please try again later"  # Ray's words, while a node's agent starts
Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)


def job_server(address: str | None = None) -> str:
    """The URL of the job server: `address`, else `RAY_API_SERVER_ADDRESS`, else `RAY_ADDRESS`, else loopback's.

    Raises ResourceError if it is not `http://HOST:PORT`, `https://…` or `HOST:PORT`.
    """
    variables = (os.environ.get(name) for name in ADDRESS_VARIABLES)
    given = address or next((value for value in variables if value), None) or DEFAULT_ADDRESS
    url = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        well_formed = False
    if not well_formed:
        raise ResourceError(
            f"{given!r} is no address of a job server; expected http://HEAD:8265 (the Ray dashboard's address)"
        )
    if parts.username or parts.password:
        raise ResourceError("the address of a job server holds no password; give the token in RAY_AUTH_TOKEN")
    return url.rstrip("/")


@contextmanager
def connection(address: str | None = None) -> Iterator[TimedJobClient]:
    """A client of the job server at `address`. Whatever goes wrong inside the `with` becomes a ResourceError."""
    url = job_server(address)
    try:
        with _without(ADDRESS_VARIABLES):  # they would override the address that was asked for
            client = TimedJobClient(url, (CONNECT_SECONDS, ANSWER_SECONDS))
        yield client
    except AuthenticationError:
        raise ResourceError(f"the cluster at {url} refuses these requests: {WANTS_TOKEN}") from None
    except OSError as error:
        raise ResourceError(
            f"no job server answers at {url} ({first_line(error)}); expected a Ray dashboard: `ray start --head` with "
            "ray[default] installed serves it on port 8265 of the head"
        ) from None
    except RuntimeError as error:
        raise ResourceError(f"the job server at {url} refuses: {first_line(error)}") from None


def when_ready(call: Callable[[], Answer]) -> Answer:
    """Return what `call` gives once the job server no longer says to try again later, as right after `ray start`.

    Raises ResourceError if it still says so after a minute.
    """
    deadline, told = time.monotonic() + READY_SECONDS, False
    while True:
        try:
            return call()
        except RuntimeError as error:
            if LATER not in str(error):
                raise
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"the job server is not ready after {READY_SECONDS:.0f} s ({first_line(error)}); the agent of its "
                    "node does not run: another Ray on the same machine may hold its port, which `ray start "
                    "--dashboard-agent-listen-port` changes"
                ) from None
            if not told:
                logger.warning("the job server is not ready yet, trying again for %.0f s", READY_SECONDS)
                told = True
        time.sleep(RETRY_SECONDS)


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """The environment without the variables `names`."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
