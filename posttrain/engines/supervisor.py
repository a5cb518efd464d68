"""Runs a command and ends it, with all its children, once the parent is gone or closes this process's stdin.

    python supervisor.py COMMAND WORD...

A separate process, since nothing else survives a kill of the stage. Its stdin is a pipe whose other end the stage
holds, so it ends with the stage, however that ends. Imports only the standard library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

_GRACE = 5.0  # seconds between the polite and the other signal


def keep(words: list[str]) -> int:
    """Runs the command; returns its exit code as a shell does."""
    for name in (signal.SIGINT, signal.SIGTERM):  # these reach the whole group; the stage decides
        signal.signal(name, signal.SIG_IGN)
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_default_signals)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        _end(child)

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    _signal(child, signal.SIGKILL)  # what it started and left behind
    return code if code >= 0 else 128 - code


def _default_signals() -> None:
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)


def _end(child: subprocess.Popen[bytes]) -> None:
    _signal(child, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_GRACE)
    _signal(child, signal.SIGKILL)


def _signal(child: subprocess.Popen[bytes], name: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, name)


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
