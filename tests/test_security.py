"""What SECURITY.md promises: nothing listens beyond loopback."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

LISTEN = "0A"  # TCP state in /proc/net/tcp
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def descendants(ancestor: int) -> set[int]:
    """`ancestor` and every process under it."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
        except OSError:  # ended meanwhile
            continue
    family = {ancestor}
    while grown := {process for process, parent in parents.items() if parent in family} - family:
        family |= grown
    return family


def listening(processes: set[int]) -> dict[int, tuple[str, str]]:
    """Port to (local address in hexadecimal, process name) of what `processes` listen on."""
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN:
                sockets[f"socket:[{fields[9]}]"] = fields[1]
    found = {}
    for process in processes:
        with suppress(OSError):  # ended meanwhile
            name = Path(f"/proc/{process}/comm").read_text().strip()
            for file in Path(f"/proc/{process}/fd").iterdir():
                descriptor = ""
                with suppress(OSError):  # closed meanwhile, as is the one of this listing
                    descriptor = os.readlink(file)
                if descriptor in sockets:
                    address, port = sockets[descriptor].split(":")
                    found[int(port, 16)] = (address, name)
    return found


@pytest.mark.usefixtures("ray_session")
def test_a_ray_started_here_listens_on_loopback_only() -> None:
    import ray

    ray.get(ray.remote(lambda: None).remote())  # a worker listens too
    found = listening(descendants(os.getpid()))
    assert {"gcs_server", "raylet"} <= {name for _, name in found.values()}, found
    assert {port: who for port, who in found.items() if who[0] not in LOOPBACK} == {}
