"""The lock of a run: one process at a time; an error names the owner.

The kernel holds the lock (`flock`) and releases it when the process dies, so on one machine it is never stale. On file
systems that cannot lock between hosts, or at all, the owner's heartbeat updates the lock file's time stamp. An owner on
another host whose stamp does not change for `STALE_SECONDS` seconds is presumed dead.

Not covered: a process that is suspended for that long on such a file system.
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
STALE_SECONDS = 3 * HEARTBEAT


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Holds the lock file for this process.

    Raises LockedError that names the owner.
    """
    with path.open("a+", encoding="utf-8") as file:
        kernel = _flock(file)
        file.seek(0)
        owner = file.read().strip()
        here = owner.endswith(f" on {socket.gethostname()}") and kernel  # the kernel speaks for this host
        if kernel is False or (owner and not here and _beats(path)):
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
    """Waits for the lock (of another process, or of a child that outlives it), then holds it.

    For a stage's output: the process of a killed command may still be exiting when the next command starts.
    """
    with path.open("a", encoding="utf-8") as file:
        with contextlib.suppress(OSError):  # no flock here: then nothing better can be had
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _flock(file: IO[str]) -> bool | None:
    """Whether this process got the kernel's lock; None if the file system does not support it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _beats(path: Path) -> bool:
    """Whether the owner's time stamp changes within `STALE_SECONDS` seconds. Clocks of hosts are not compared."""
    before, end = path.stat().st_mtime_ns, time.monotonic() + STALE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(0.2, STALE_SECONDS / 10))
        if path.stat().st_mtime_ns != before:
            return True
    return False


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(path)
