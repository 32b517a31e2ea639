"""The Ray cluster a command works on: one started here for it, or the one at an address."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType

import ray
from ray.exceptions import AuthenticationError

from kt_ray._compat.ray import TOKEN_LOGGER, few_connection_retries, on_loopback, running_cluster_address
from kt_ray._io.text import first_line
from kt_ray.config import RayConfig
from kt_ray.errors import ResourceError

logger = logging.getLogger(__name__)

WANTS_TOKEN = "it wants its token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's"
ANSWER_SECONDS = 5.0
SILENT_SECONDS, LAST_SECONDS = 3.0, 4.0  # until a Ray that is silent is gone; for what is done before the end
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # an empty frame of type 4, which both ends of HTTP/2 send first


@contextmanager
def connected(config: RayConfig) -> Iterator[None]:
    """Ray for the length of a `with`. A session that is already initialised (a job, a test) is used and left alone.

    The one started here listens on loopback, without a dashboard. Raises ResourceError, within seconds, where no head
    answers at `config.address` or `RAY_ADDRESS`, or where it wants another token.
    """
    if ray.is_initialized():
        yield
        return
    if address := config.address or os.environ.get("RAY_ADDRESS"):
        _join(address)
    else:
        _start(config)
    try:
        with ending_on_sigterm():
            yield
    finally:
        ray.shutdown()


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends what runs inside in order, with status 143. Ray's own handler, set by `ray.init`, would abort it."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with handling(end, signal.SIGTERM):
        yield


@contextmanager
def handling(
    handler: Callable[[int, FrameType | None], object],
    *numbers: int,
    before_exit: Callable[[], object] | None = None,
) -> Iterator[None]:
    """Call `handler` on the signals `numbers`. Only the main thread gets signals; in another one this does nothing.

    Who sends a signal to a whole process group ends Ray's processes too, and Ray's client would wait a minute for them,
    in C++, where no Python handler is called. So a thread watches: once Ray has not answered for some seconds after
    such a signal, it calls `before_exit` and ends this process with status 128 + the signal's number.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    threading.Thread(target=_await_signal, args=(reading, numbers, before_exit), daemon=True).start()
    earlier_wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    earlier = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in earlier.items():
            signal.signal(number, former)
        signal.set_wakeup_fd(earlier_wakeup)
        writing.close()  # ends the thread


def _await_signal(reading: socket.socket, numbers: tuple[int, ...], before_exit: Callable[[], object] | None) -> None:
    """Watch Ray from the first of `numbers` that `signal.set_wakeup_fd` writes to the socket, until that is closed."""
    with reading:
        while received := reading.recv(1):
            if (number := received[0]) in numbers:
                with suppress(Exception):  # no Ray, or one that is reached by ray://
                    _watch(ray.get_runtime_context().gcs_address, 128 + number, before_exit)


def _watch(address: str, status: int, before_exit: Callable[[], object] | None) -> None:
    host, _, port = address.rpartition(":")
    silent_since = None
    while ray.is_initialized():
        time.sleep(0.25)
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
            silent_since = None
        except OSError:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > SILENT_SECONDS:
                break
    else:
        return
    last = threading.Timer(LAST_SECONDS, os._exit, (status,))
    last.daemon = True
    last.start()
    logger.warning("Ray's processes are gone; nothing is lost: the same command goes on from here")
    with suppress(Exception):
        if before_exit is not None:
            before_exit()
    os._exit(status)


def _start(config: RayConfig) -> None:
    """Start a Ray that binds its servers to 127.0.0.1 and to nothing else."""
    # It says at every start that a token keeps others out, which is what is wanted.
    logging.getLogger(TOKEN_LOGGER).setLevel(logging.ERROR)
    try:
        with on_loopback():
            ray.init(
                address="local",  # unset, Ray would join whatever cluster runs on this machine
                num_cpus=config.cpus,
                num_gpus=config.gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
    except Exception as error:  # a bare one where its processes are not up in time
        raise ResourceError(
            f"no Ray can be started here ({first_line(error)}); try again with less beside it"
        ) from None


def _join(address: str) -> None:
    """Join the cluster at `address`: `HOST:PORT`, `ray://HOST:PORT` or `auto`."""
    try:
        with few_connection_retries(), on_loopback() if _listens_on_loopback(address) else nullcontext():
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError, AuthenticationError) as error:
        if isinstance(error, AuthenticationError) or "AuthenticationError" in str(error.__cause__):
            raise ResourceError(f"the Ray cluster at {address} refuses: {WANTS_TOKEN}") from None
        raise ResourceError(
            f"no Ray cluster answers at {address!r} ({first_line(error)}); start one with `ray start --head`, or "
            "leave ray.address and RAY_ADDRESS unset to start one here"
        ) from None


def _listens_on_loopback(address: str) -> bool:
    """Return whether the head at `address` listens on loopback alone.

    Ray goes to the machine's own address when told to go to loopback, where such a head does not listen. Raises OSError
    within seconds if nothing answers as a head does: `ray.init` would try for minutes.
    """
    if address == "auto":
        address = running_cluster_address() or address
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    host = host.strip("[]")
    if not separator or not port.isdigit() or "/" in host:
        raise ValueError("expected HOST:PORT, ray://HOST:PORT or auto; a job server's http://… is for `kt-ray submit`")
    if host in LOOPBACK and not address.startswith("ray://"):
        with suppress(OSError):
            _greet(ray.util.get_node_ip_address(), int(port))  # type: ignore[no-untyped-call]
            return False
        _greet(host, int(port))
        return True
    _greet(host, int(port))
    return False


def _greet(host: str, port: int) -> None:
    """Exchange HTTP/2's first frames with a gRPC server (RFC 9113, 3.4). Raises OSError if there is none."""
    with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
        answer = connection.recv(len(SETTINGS))
    if answer[3:4] != SETTINGS[3:4]:
        raise ConnectionError("what listens there is no Ray head, whose port is 6379 unless set")


def fitting(demand: Mapping[str, float], labels: Mapping[str, str] | None = None) -> int:
    """Return how many of `demand` (Ray resource names to amounts) fit on the living nodes that carry `labels`.

    Counts whole nodes, busy or not. Raises ResourceError, naming what each node has, where not even one fits.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    total = 0
    for node in nodes:
        if any(node.get("Labels", {}).get(key) != value for key, value in (labels or {}).items()):
            continue
        have = node["Resources"]
        total += min(_times(name, have.get(name, 0.0), amount) for name, amount in demand.items() if amount > 0)
    if total == 0:
        seen = "; ".join(_amounts(node["Resources"]) or "nothing" for node in nodes)
        wanted = ", ".join(f"{name}={amount:g}" for name, amount in demand.items() if amount > 0)
        labelled = f" and labels {dict(labels)}" if labels else ""
        raise ResourceError(f"no node has {wanted}{labelled}; the cluster's nodes have: {seen}; ask for less")
    return total


def _times(name: str, have: float, amount: float) -> int:
    """Return how often `amount` of a resource fits into what a node has; a share of a GPU is of one GPU."""
    if name == "GPU" and amount < 1:
        return int(have) * int(1 / amount + 1e-9)
    return int(have / amount + 1e-9)


def _amounts(resources: Mapping[str, float]) -> str:
    """Return a node's resources in words, without its memory and its own name."""
    named = sorted(item for item in resources.items() if ":" not in item[0] and "memory" not in item[0])
    return ", ".join(f"{name}={amount:g}" for name, amount in named)
