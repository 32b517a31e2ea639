"""What runs on the rig's hosts: PostgreSQL, MLflow with passwords, Ray nodes that come back as systemd's would."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hosts import Host

BIN = Path(sys.executable).parent
PORT = 6379
DASHBOARD = 8265
SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]


def wait_for(what: str, ready: Callable[[], bool], seconds: float = 120) -> float:
    """Wait until `ready()`; how long it took. Raises TimeoutError naming `what`."""
    began = time.monotonic()
    while not ready():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"{what} within {seconds:g} s")
        time.sleep(0.5)
    return time.monotonic() - began


@dataclass
class Database:
    """PostgreSQL on a host, with the databases `optuna`, `mlflow` and `mlflow_auth` of the role `kt_ray`."""

    host: Host
    directory: Path
    password: str
    process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make the cluster of databases and start it."""
        owner = pwd.getpwnam("postgres")
        self.directory.mkdir(parents=True)
        os.chown(self.directory, owner.pw_uid, owner.pw_gid)
        secret = self.directory.parent / "postgres.password"
        secret.write_text(self.password)
        os.chown(secret, owner.pw_uid, owner.pw_gid)
        options = ["--auth=scram-sha-256", "--username=kt_ray", f"--pwfile={secret}", "--no-sync"]
        made = self.host.run(self._as_postgres("initdb", f"--pgdata={self.directory}", *options))
        assert made.returncode == 0, made.stderr
        with (self.directory / "pg_hba.conf").open("a") as file:
            file.write("host all kt_ray 10.77.0.0/24 scram-sha-256\n")
        self.start()
        for name in ("optuna", "mlflow", "mlflow_auth"):
            done = self._psql("postgres", f"CREATE DATABASE {name}")
            assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = ["-c", f"listen_addresses={self.host.address}", "-c", f"unix_socket_directories={self.directory}"]
        command = self._as_postgres("postgres", "-D", str(self.directory), "-c", "max_connections=100", *options)
        self.process = self.host.start(command, "postgresql")
        wait_for("PostgreSQL answers", lambda: self._psql("postgres", "SELECT 1").returncode == 0, 200)

    def restart(self, away: float) -> None:
        """Stop as `systemctl restart` does, cutting every connection; back after `away` seconds."""
        stopped = self.host.run(self._as_postgres("pg_ctl", "stop", "-D", str(self.directory), "-m", "fast"))
        assert stopped.returncode == 0, stopped.stderr
        time.sleep(away)
        self.start()

    def url(self, database: str) -> str:
        """SQLAlchemy's URL of a database, without the password."""
        return f"postgresql+psycopg://kt_ray@{self.host.address}:5432/{database}"

    def _psql(self, database: str, statement: str) -> subprocess.CompletedProcess[str]:
        command = ["psql", "-h", self.host.address, "-U", "kt_ray", "-d", database, "-c", statement]
        return self.host.run(command, os.environ | {"PGPASSWORD": self.password})

    @staticmethod
    def _as_postgres(program: str, *arguments: str) -> list[str]:
        return [
            "setpriv",
            "--reuid=postgres",
            "--regid=postgres",
            "--clear-groups",
            str(SERVERS[0] / program),
            *arguments,
        ]


@dataclass
class Tracking:
    """An MLflow server on a host: passwords on, host names checked, artifacts served."""

    database: Database
    artifacts: Path
    user: str
    password: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://{self.database.host.address}:5000"

    def start(self) -> None:
        """Start and return at once."""
        host = self.database.host
        settings = self.artifacts.parent / "basic_auth.ini"
        settings.write_text(
            "[mlflow]\ndefault_permission = READ\nauth_cache_ttl_seconds = 60\n"
            f"database_uri = {self.database.url('mlflow_auth')}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        environment = os.environ | {
            "PGPASSWORD": self.database.password,
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_USERNAME": self.user,
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.password,
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [
            str(BIN / "mlflow"),
            "server",
            f"--host={host.address}",
            "--port=5000",
            "--workers=1",
            "--app-name=basic-auth",
            f"--backend-store-uri={self.database.url('mlflow')}",
            "--serve-artifacts",
            f"--artifacts-destination={self.artifacts}",
            f"--allowed-hosts={host.address}:5000",
        ]
        self.process = host.start(command, "mlflow", environment)

    def await_answer(self) -> None:
        """Wait until it answers."""
        probe = [sys.executable, "-I", "-c", f"import urllib.request as u; u.urlopen('{self.uri}/health', timeout=5)"]
        wait_for("MLflow answers", lambda: self.database.host.run(probe).returncode == 0, 400)

    def kill(self) -> None:
        """Kill it and its workers: all of this host's Python."""
        assert self.database.host.kill(str(BIN)), "no MLflow to kill"


@dataclass
class RayNode:
    """A Ray node on a host. A worker is started again when it ends, for it ends when its head does."""

    host: Host
    options: list[str]
    environment: Mapping[str, str]
    head: Host | None = None
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        """Start and return at once."""
        common = [
            f"--node-ip-address={self.host.address}",
            "--disable-usage-stats",
            "--object-store-memory=100000000",
            *self.options,
        ]
        ray = [str(BIN / "ray"), "start", "--block", *common]
        if self.head is None:
            command = [*ray, "--head", f"--port={PORT}", f"--dashboard-host={self.host.address}"]
        else:
            once = shlex.join([*ray, f"--address={self.head.address}:{PORT}"])
            command = ["bash", "-c", f"while :; do {once}; sleep 2; done"]
        self.process = self.host.start(command, "ray", self.environment)


def available() -> str | None:
    """Why these services cannot run here; None where they can."""
    if not SERVERS:
        return "no PostgreSQL server (the Debian package postgresql has it)"
    for program in ("psql", "setpriv", "ps"):
        if not shutil.which(program):
            return f"no program {program}"
    if not (BIN / "mlflow").exists():
        return "no mlflow beside this Python"
    return None
