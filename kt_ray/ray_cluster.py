"""The Ray cluster a command works on: one started here for it, or the one at an address."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import ray

from kt_ray.config import RayConfig
from kt_ray.errors import ResourceError

logger = logging.getLogger(__name__)


@contextmanager
def connected(config: RayConfig) -> Iterator[None]:
    """Ray for the length of a `with`. A session that is already initialised (a job, a test) is used and left alone.

    The one started here listens on loopback, without a dashboard. Raises ResourceError where `config.address`
    does not answer.
    """
    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _answers(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            with _loopback_only():
                ray.init(
                    address="local",  # unset, Ray would join whatever cluster runs on this machine
                    num_cpus=config.cpus,
                    num_gpus=config.gpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                )
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ResourceError(
            f"no Ray cluster answers at {address!r} ({reason}); start one with `ray start --head`, or leave "
            "ray.address and RAY_ADDRESS unset to start one here"
        ) from None
    try:
        with _ending_on_sigterm():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends what runs inside in order, with status 143. Ray's own handler, set by `ray.init`, would abort it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _loopback_only() -> Iterator[None]:
    """A Ray started inside binds its servers to 127.0.0.1 and to nothing else.

    Ray turns even `_node_ip_address="127.0.0.1"` into the machine's own address, then listens on every interface;
    it stays on loopback only where this constant says that the machine is part of no cluster (macOS's default).
    """
    from ray._private import ray_constants

    # It says at every start that a token keeps others out, which is what is wanted.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _answers(address: str) -> None:
    """Raises OSError where nothing listens at a `host:port`: `ray.init` itself would wait for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def fitting(demand: Mapping[str, float], labels: Mapping[str, str] | None = None) -> int:
    """How many of `demand` (Ray resource names to amounts) fit on the living nodes that carry `labels`.

    Counts whole nodes, busy or not. Raises ResourceError, naming what each node has, where not even one fits.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    total = 0
    for node in nodes:
        if any(node.get("Labels", {}).get(key) != value for key, value in (labels or {}).items()):
            continue
        have = node["Resources"]
        total += min(int(have.get(name, 0.0) / amount + 1e-9) for name, amount in demand.items() if amount > 0)
    if total == 0:
        seen = "; ".join(
            ", ".join(f"{name}={amount:g}" for name, amount in sorted(node["Resources"].items()) if ":" not in name
                      and "memory" not in name) or "nothing"
            for node in nodes
        )  # fmt: skip
        wanted = ", ".join(f"{name}={amount:g}" for name, amount in demand.items() if amount > 0)
        labelled = f" and labels {dict(labels)}" if labels else ""
        raise ResourceError(f"no node has {wanted}{labelled}; the cluster's nodes have: {seen}; ask for less")
    return total
