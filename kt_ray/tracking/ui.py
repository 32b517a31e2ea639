"""MLflow's UI on the store of a workspace, on loopback unless told otherwise."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from kt_ray._io.urls import redacted
from kt_ray.errors import TrackingError
from kt_ray.tracking.store import ENVIRONMENT, open_store, probe, reaching
from kt_ray.tracking.view import newest_page

START_SECONDS = 240.0  # on a busy machine; seconds otherwise


def serve(
    uri: str,
    artifact_root: str | None,
    host: str = "127.0.0.1",
    port: int = 5000,
    announce: Callable[[str], object] = print,
) -> int:
    """Show the UI of the store `uri` until Ctrl-C.

    Returns the server's exit status; a tracking server (`http…`) has its own UI and needs none.
    """
    if uri.startswith("http"):
        probe(uri)
        announce(f"the tracking server has its own UI: {uri}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # a server must not outlive the command
    server = start(uri, artifact_root, host, port)
    try:
        with reaching(uri):
            page = newest_page(open_store(uri, make=False))
        announce(f"MLflow UI of {redacted(uri)}: http://{host}:{port}/{page}  (Ctrl-C ends it)")
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        stop(server)


def start(uri: str, artifact_root: str | None, host: str = "127.0.0.1", port: int = 5000) -> subprocess.Popen[bytes]:
    """An MLflow server on the database `uri` as a process of its own, ready to answer. End it with `stop`.

    Raises TrackingError if the port is taken or the server does not come up.
    """
    open_store(uri)  # its tables, and one line where it cannot be opened
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((host, port))
        except OSError as error:
            raise TrackingError(
                f"port {port} of {host} cannot be used ({error.strerror}); name another with --port"
            ) from None
    command = [sys.executable, *f"-m mlflow server --host {host} --port {port} --workers 1".split()]
    command += ["--backend-store-uri", uri, "--uvicorn-opts", "--log-level warning"]
    if artifact_root:
        command += ["--default-artifact-root", artifact_root]
    # Its own group: Ctrl-C reaches this program, which ends the server and its workers in order.
    silent = subprocess.DEVNULL
    server = subprocess.Popen(
        command, env=ENVIRONMENT | os.environ, start_new_session=True, stdout=silent, stderr=silent
    )
    address = "127.0.0.1" if host == "0.0.0.0" else host
    deadline = time.monotonic() + START_SECONDS
    try:
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(TrackingError):
                probe(f"http://{address}:{port}")
                return server
            time.sleep(0.2)
    except BaseException:  # Ctrl-C, SIGTERM
        stop(server)
        raise
    stop(server)
    raise TrackingError(f"MLflow's UI did not start on {host}:{port}; try `{' '.join(command)}` to see why")


def stop(server: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """End the server and its workers; after `patience` seconds, by force."""
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(seconds)
            return
