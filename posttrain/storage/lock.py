"""One process works on a run at a time; a second one is told who has it.

The kernel holds the lock (`flock`) and lets go of it when the process dies, so on one machine none is ever stale. On
file systems that cannot lock between hosts, or not at all, the owner's heartbeat tells: while it works on the run, the
lock's time stamp moves. An owner on another host whose stamp stands still for `PATIENCE` seconds is taken for dead.

What this does not cover: a process that is suspended for that long on such a file system.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from posttrain.errors import LockedError

HEARTBEAT = 5.0  # seconds
PATIENCE = 3 * HEARTBEAT


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock file for this process.

    Raises LockedError naming the owner.
    """
    with path.open("a+", encoding="utf-8") as file:
        kernel = _flock(file)
        owner = _owner(file)
        if kernel is False or (owner and _may_live(owner, kernel) and _beats(path)):
            raise LockedError(
                f"{path.parent}: {owner or 'another process'} is working on this run; wait for it, stop it, or choose "
                "another --run"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        stop = threading.Event()
        heart = threading.Thread(target=_beat, args=(path, stop), daemon=True)
        heart.start()
        try:
            yield
        finally:
            stop.set()
            heart.join()
            file.truncate(0)  # nobody need wait for a heartbeat


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no process is in here, nor any that it forked and that lives on; then hold it.

    For what a stage writes: one whose command was killed may still be on its way out when the next one begins.
    """
    with path.open("a", encoding="utf-8") as file:
        with contextlib.suppress(OSError):  # no flock here: then nothing better can be had
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _flock(file: IO[str]) -> bool | None:
    """Whether this process now has the kernel's lock; None where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _owner(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip()


def _may_live(owner: str, kernel: bool | None) -> bool:
    """Whether somebody who left his name may still be at work, though the kernel did not say so."""
    here = owner.endswith(f" on {socket.gethostname()}")
    return not (here and kernel)  # the kernel speaks for this host


def _beats(path: Path) -> bool:
    """Whether the owner's stamp moves within `PATIENCE`. Clocks are not compared: those of hosts differ."""
    before, end = path.stat().st_mtime_ns, time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(min(0.2, PATIENCE / 10))
        if path.stat().st_mtime_ns != before:
            return True
    return False


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(path)
