"""A connection to a Ray cluster's job server: quick to say that nothing answers, one line for each fault."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """The environment without the variables `names`."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
