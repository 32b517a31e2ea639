"""One driver a study: a lease in the study's attributes, renewed while the driver lives.

On the machine of the holder, its process decides whether it lives; elsewhere, whether its lease still moves. No clocks
are compared.
"""

from __future__ import annotations

import getpass
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import optuna

from kt_ray.errors import StudyError

logger = logging.getLogger(__name__)

ATTRIBUTE = "driver"  # user attribute of the study
BEAT = 5.0  # seconds between renewals
PATIENCE = 20.0  # seconds without one until a holder on another machine counts as dead
SETTLE = 0.3  # seconds in which two drivers that start at once see each other


@dataclass(frozen=True)
class Holder:
    """The process that searches a study. `machine` tells boots and namespaces apart, `born` processes of one number."""

    token: str
    user: str
    host: str
    pid: int
    born: str
    machine: str
    since: str
    beat: int = 0

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        since = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        pid = os.getpid()
        return cls(secrets.token_hex(8), _user(), socket.gethostname(), pid, _born(pid), _machine(), since)

    def gone(self) -> bool | None:
        """Return whether its process is gone; None if this machine cannot tell."""
        if self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return _born(self.pid) != self.born

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}"


def holder_of(study: optuna.Study) -> Holder | None:
    """Return the process that searches `study`, as far as the storage knows."""
    content = study.user_attrs.get(ATTRIBUTE)
    return Holder(**content) if content else None


class Lease:
    """Held by one driver. `lost` is the driver that has taken it over, if one has."""

    def __init__(self, study: optuna.Study, holder: Holder) -> None:
        self._study = study
        self._holder = holder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="study-lease", daemon=True)
        self.lost: Holder | None = None

    def start(self) -> None:
        self._thread.start()

    def release(self) -> None:
        """Stop renewing and let the next driver in."""
        self._ended.set()
        self._thread.join()
        if self.lost is None:
            self._study.set_user_attr(ATTRIBUTE, None)

    def _renew(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT):
            beat += 1
            try:
                present = holder_of(self._study)
                if present is None or present.token != self._holder.token:
                    self.lost = present or self._holder
                    return
                self._study.set_user_attr(ATTRIBUTE, asdict(self._holder) | {"beat": beat})
            except Exception as error:  # a storage that is away for a moment must not end the lease
                logger.debug("lease of %s not renewed: %s", self._study.study_name, error)


@contextmanager
def hold_lease(study: optuna.Study) -> Iterator[Lease]:
    """Hold the lease of `study`. Raises StudyError naming the holder if another driver lives."""
    wait_until_free(study)
    mine = Holder.here()
    study.set_user_attr(ATTRIBUTE, asdict(mine))
    time.sleep(SETTLE)
    present = holder_of(study)
    if present is None or present.token != mine.token:
        raise _refused(study, present or mine)
    lease = Lease(study, mine)
    lease.start()
    try:
        yield lease
    finally:
        lease.release()


def wait_until_free(study: optuna.Study) -> None:
    """Return once no living driver holds the lease. Raises StudyError as soon as one is seen to."""
    holder = holder_of(study)
    if holder is None or holder.gone():
        return
    if holder.gone() is False:
        raise _refused(study, holder)
    logger.warning("study %s is held by %s; watching for %.0f s whether it lives", study.study_name, holder, PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(1)
        present = holder_of(study)
        if present is None:
            return
        if (present.token, present.beat) != (holder.token, holder.beat):
            raise _refused(study, present)


def _refused(study: optuna.Study, holder: Holder) -> StudyError:
    return StudyError(
        f"study {study.study_name} is being searched by {holder}; wait for it or stop it, then run the command again"
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _machine() -> str:
    """This boot of this machine, and its process namespace where there is one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _born(pid: int) -> str:
    """Return the start of process `pid`, in the kernel's ticks; empty if that cannot be read, or if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]  # a zombie has ended, though no one has asked for its exit status
    except (OSError, ValueError, IndexError):
        return ""
