"""Real servers for the tests: MLflow's, with and without passwords, PostgreSQL, and a gate before a server."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from kt_ray.errors import TrackingError
from kt_ray.tracking.store import ENVIRONMENT, probe
from kt_ray.tracking.ui import stop

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def free_port() -> int:
    """A port of loopback that nothing uses, between Ray's workers' and those the system hands out: while a server
    starts, none takes it by chance."""
    while True:
        port = random.SystemRandom().randrange(20000, 32768)  # unlike in a worker beside this one, however seeded
        with contextlib.suppress(OSError), closing(socket.socket()) as listener:
            listener.bind(("127.0.0.1", port))
            return port


@contextmanager
def mlflow_server(
    directory: Path, database: Path, *options: str, environment: dict[str, str] | None = None
) -> Iterator[str]:
    """An MLflow server on a copy of `database`, its artifacts in `directory`; its address."""
    port = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    copy = shutil.copyfile(database, directory / "server.db")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{copy}", "--workers", "1"]
    command += ["--artifacts-destination", str(directory / "artifacts"), "--port", str(port), *options]
    with (directory / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command,
            cwd=directory,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=ENVIRONMENT | os.environ | (environment or {}),
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            with contextlib.suppress(TrackingError):
                probe(f"http://127.0.0.1:{port}")
                break
            up = server.poll() is None and time.monotonic() < deadline
            assert up, (directory / "server.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(server, patience=0.5)


class Postgres:
    """A PostgreSQL cluster of its own on loopback, without passwords; `uri` names its empty database."""

    def __init__(self, directory: Path) -> None:
        self.data, self.port = directory / "data", free_port()
        self.uri = f"postgresql+psycopg://mlflow@127.0.0.1:{self.port}/mlflow"
        self.data.mkdir(parents=True)
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            for path in (self.data, *self.data.parents):
                if Path(tempfile.gettempdir()) in path.parents:
                    path.chmod(0o755)
            shutil.chown(self.data, "postgres")
        self._run("initdb", "-D", str(self.data), "-A", "trust", "-U", "mlflow", "--no-sync")
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "mlflow", "mlflow")

    def start(self) -> None:
        options = f"-p {self.port} -k {self.data} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self.data / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        command = [*user, str(POSTGRES[-1] / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=300, cwd="/")


@contextmanager
def postgres_server(directory: Path) -> Iterator[Postgres]:
    """A PostgreSQL server in `directory`."""
    server = Postgres(directory)
    try:
        yield server
    finally:
        server.stop()


class Gate:
    """A loopback port before a server. Closed, it refuses; `swallow` answers n requests after they were done not at
    all: what a broken connection does."""

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("http://").split(":")
        self.server = (host, int(port))
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.swallow: Callable[[bytes], bool] = lambda request: False
        self._listener: socket.socket | None = None
        self.open()

    def open(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._exchange, args=(connection,), daemon=True).start()

    def _exchange(self, connection: socket.socket) -> None:
        """One request and its answer; the connection is then closed, so that `close` cuts what follows."""
        with (
            contextlib.suppress(OSError),
            closing(connection),
            closing(socket.create_connection(self.server)) as server,
        ):
            request = _message(connection)
            server.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            answer = b""
            while chunk := server.recv(65536):
                answer += chunk
            if not self.swallow(request):
                connection.sendall(answer)


def _message(connection: socket.socket) -> bytes:
    """An HTTP request with its body."""
    message = b""
    while b"\r\n\r\n" not in message:
        chunk = connection.recv(65536)
        if not chunk:
            return message
        message += chunk
    head, _, body = message.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    length = int(lengths[0].split(b":")[1]) if lengths else 0
    while len(body) < length:
        body += connection.recv(65536)
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
