"""Several hosts on one machine: each has its own network, processes, host name, shared memory and Ray directory.

A host is a network namespace and, in it, a first process with namespaces of its own for the rest; killing that process
is pulling the plug. Hosts see one file system, as if it were NFS. Needs root and iproute2.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

NETWORK = "10.77.0"  # a private range, inside the rig's own namespaces only
# The first process of a host: bash, which reaps what is orphaned.
FIRST = (
    'mount --bind "$1" /tmp/ray && mount -t tmpfs tmpfs /dev/shm && hostname "$2" && echo up && '
    "while :; do sleep 60; done"
)


def lacking() -> str | None:
    """Why there can be no rig here; None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "unshare", "nsenter", "mount"):
        if not shutil.which(program):
            return f"no program {program}"
    made = subprocess.run(["ip", "netns", "add", "kt-rig-try"], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", "kt-rig-try"], check=True)
    return None


class Network:
    """A switch, in a namespace of its own, that hosts are plugged into. Leaving the `with` removes every trace."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = f"ktrig{os.getpid() % 10000}"
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Network:
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "add", "switch", "type", "bridge")
        _ip("-n", self.name, "link", "set", "switch", "up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for host in self.hosts.values():
            host.unplug()
        subprocess.run(["ip", "netns", "delete", self.name], check=False)

    def host(self, name: str) -> Host:
        """Plug in a new host; the one of that name, if there was one, must be unplugged."""
        number = len(self.hosts) + 1
        old = self.hosts.get(name)
        host = Host(self, name, f"{NETWORK}.{number}" if old is None else old.address)
        self.hosts[name] = host
        return host


class Host:
    """A machine on the network with an address of its own."""

    def __init__(self, network: Network, name: str, address: str) -> None:
        self.network, self.name, self.address = network, name, address
        self.namespace = f"{network.name}-{name}"
        self.port = f"p-{name}"[:15]
        self.logs = network.directory / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        scratch = network.directory / "ray" / name
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        _ip("netns", "add", self.namespace)
        _ip("-n", self.namespace, "link", "set", "lo", "up")
        _ip(
            "-n",
            network.name,
            "link",
            "add",
            self.port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.namespace,
        )
        _ip("-n", network.name, "link", "set", self.port, "master", "switch", "up")
        _ip("-n", self.namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", self.namespace, "link", "set", "eth0", "up")
        unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts", "--ipc"]
        self._outer = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *unshare, "bash", "-c", FIRST, "bash", str(scratch), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self._outer.stdout is not None
        if self._outer.stdout.readline().strip() != "up":
            raise RuntimeError(f"host {name} did not start")
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        self._first = int(children[0])  # `ip` becomes `unshare`, whose child is the host's first process

    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self._first}", "--net", "--mount", "--uts", "--pid", "--ipc", "--"]

    def start(
        self, command: Sequence[str], log: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program that goes on; what it prints is appended to `logs/<host>-<log>.log`."""
        with self._log(log) as file:
            return subprocess.Popen(
                [*self._enter(), *command],
                stdout=file,
                stderr=file,
                env=dict(environment or os.environ),
                start_new_session=True,
            )

    def run(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(
            [*self._enter(), *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=dict(environment or os.environ),
        )

    def programs(self) -> dict[int, str]:
        """The processes of this host, by their number there: an actor's title is `ray::Class.method`."""
        listed = self.run(["ps", "-e", "-o", "pid=,args="]).stdout.splitlines()
        return {int(number): title.strip() for number, _, title in (line.strip().partition(" ") for line in listed)}

    def kill(self, title: str) -> int:
        """Kill the processes whose title holds `title`; how many there were."""
        numbers = [str(number) for number, program in self.programs().items() if title in program and number != 1]
        if numbers:
            self.run(["kill", "-KILL", *numbers])
        return len(numbers)

    def cut(self) -> None:
        """Take the cable out; the host goes on by itself."""
        _ip("-n", self.network.name, "link", "set", self.port, "down")

    def mend(self) -> None:
        """Put the cable back."""
        _ip("-n", self.network.name, "link", "set", self.port, "up")

    def unplug(self) -> None:
        """Kill every process of the host at once and remove it."""
        if self._outer.poll() is None:
            os.kill(self._first, signal.SIGKILL)
            self._outer.wait(300)
        for _ in range(50):
            if subprocess.run(["ip", "netns", "delete", self.namespace], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        subprocess.run(["ip", "-n", self.network.name, "link", "delete", self.port], capture_output=True)

    def _log(self, name: str) -> IO[bytes]:
        return (self.logs / f"{self.name}-{name}.log").open("ab")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
