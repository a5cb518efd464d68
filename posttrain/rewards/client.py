"""Calls the functions of a reward file, which run in their own process: see `worker`.

There is one process per file content and calling process: what a function does to its working folder, signals, output,
start method or threads affects no other file and no stage. It lives as long as the calling process.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from posttrain.rewards import worker

_WORKER = str(Path(__file__).with_name("worker.py"))
_KEPT = 8  # processes at once; a recipe has fewer files
_TELL = 1.0  # seconds that a function which hangs has to tell where
_IMPORT = 60.0  # seconds that importing the file may take at least, where calls have a limit
_FRAME = re.compile(r'File "(.*)", line (\d+) in ')
_READING = re.compile(r'/worker\.py", line \d+ in _checked$', re.MULTILINE)


@dataclass
class Ended(Exception):
    """The process ended: its exit code, or minus the signal, None if unknown; and the line where it was."""

    code: int | None
    line: int | None
    importing: bool


@dataclass
class Overdue(Exception):
    """The function did not return in time; its process and all children were killed. `line`: where it was. `reading`:
    it had returned, and reading its return value did not end."""

    line: int | None
    importing: bool
    reading: bool = False


@dataclass
class Raised(Exception):
    """The file or the function raised an exception: its name, its text, and the file's line."""

    kind: str
    text: str
    line: int | None
    importing: bool


@dataclass
class Wrong(Exception):
    """The return value is not one number or None per row: see the kinds of `worker`."""

    kind: bytes
    texts: list[str]


class Process:
    """The process of one file. Calls from several threads are serialized."""

    def __init__(self, file: str) -> None:
        self._file = os.path.abspath(file)
        self.lock = threading.Lock()
        self._ready = False
        self._group: int | None = None
        self._channel, channel = socket.socketpair()
        self._life, life = socket.socketpair()
        self._trace, trace = os.pipe()
        os.set_blocking(self._trace, False)
        os.set_blocking(trace, False)
        theirs = (channel.fileno(), life.fileno(), trace)
        environment = {"OMP_NUM_THREADS": "1", **os.environ}  # as for torch in a stage: same bits, no oversubscription
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", _WORKER, *map(str, theirs)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # the stage's log; of a command, not what others may read
                pass_fds=theirs,
                env=environment,
                start_new_session=True,
            )
        finally:
            channel.close()
            life.close()
            os.close(trace)
        with contextlib.suppress(OSError):  # it is gone already, which the first call tells
            self._send({"file": self._file, "path": sys.path})

    def call(self, function: str, given: Mapping[str, list[Any]], rows: int, seconds: float | None) -> list:
        """The scores. Raises Raised or Wrong, or Ended or Overdue, after which the process is gone, as it is after an
        import that failed.

        seconds: the time limit of the function; None: no limit.
        """
        with self.lock:
            if self.closed:  # by another thread, while this one waited
                raise Ended(None, None, importing=False)
            try:
                if not self._ready:
                    self._import(None if seconds is None else max(seconds, _IMPORT))
                self._send({"function": function, "rows": rows, "given": dict(given), "folder": os.getcwd()})
                return _scores(self._reply(seconds), importing=False)
            except OSError:
                self._ended()
            except (Raised, Wrong, Ended, Overdue):
                raise  # an answer, or the process is gone
            except BaseException:  # in the middle of one: the next call would read the rest of it as its own
                self._kill()
                raise

    def _import(self, seconds: float | None) -> None:
        self._group = int(self._reply(seconds)[1:])
        try:
            _scores(self._reply(seconds), importing=True)
        except Raised:
            self.close()
            raise
        self._ready = True

    def close(self) -> None:
        """Ends the process and its children: they end when nobody holds this end of the pipe."""
        self.forget()
        self._process.wait()

    @property
    def closed(self) -> bool:
        return self._trace < 0

    def forget(self) -> None:
        """Closes the handles without ending the process: for a fork of the calling process."""
        if not self.closed:
            trace, self._trace = self._trace, -1
            self._channel.close()
            self._life.close()
            os.close(trace)

    def _send(self, request: Mapping[str, Any]) -> None:
        self._channel.sendall(pickle.dumps(request, protocol=pickle.HIGHEST_PROTOCOL))

    def _reply(self, seconds: float | None) -> bytes:
        deadline = None if seconds is None else time.monotonic() + seconds
        return self._read(int.from_bytes(self._read(8, deadline), "big"), deadline)

    def _read(self, size: int, deadline: float | None) -> bytes:
        got = bytearray()
        waiting = select.poll()
        waiting.register(self._channel, select.POLLIN)
        waiting.register(self._life, select.POLLIN)
        while len(got) < size:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = dict(waiting.poll(None if left is None else left * 1000))
            if self._channel.fileno() in ready:
                part = self._channel.recv(size - len(got))
                if not part:
                    self._ended()
                got += part
            elif ready:  # only then: an answer that was given before its end is taken
                self._ended()
            else:
                self._overdue()
        return bytes(got)

    def _overdue(self) -> NoReturn:
        """Asks the process for its line, then kills it."""
        text = ""
        if self._group is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._group, signal.SIGUSR2)
                asked = select.poll()
                asked.register(self._trace, select.POLLIN)
                asked.poll(_TELL * 1000)
                time.sleep(0.01)  # it is written in pieces
                text = self._told()
        self._kill()
        raise Overdue(self._line(text), not self._ready, bool(_READING.search(text)))

    def _ended(self) -> NoReturn:
        self._life.settimeout(5.0)
        try:
            said = self._life.recv(16)
        except OSError:
            said = b""
        text = self._told()
        self._kill()
        raise Ended(int(said) if said else None, self._line(text), not self._ready)

    def _kill(self) -> None:
        if self._group is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, signal.SIGKILL)
        self.close()

    def _told(self) -> str:
        try:
            return os.read(self._trace, 1 << 16).decode("ascii", "replace")
        except BlockingIOError:
            return ""

    def _line(self, text: str) -> int | None:
        """The file's innermost line in a traceback that Python wrote."""
        name = self._file.encode("ascii", "backslashreplace").decode("ascii")
        return next((int(line) for file, line in _FRAME.findall(text) if file == name), None)


def _scores(reply: bytes, importing: bool) -> list[float | None]:
    kind, body = reply[:1], reply[1:]
    if kind == worker.READY:
        return []
    if kind == worker.SCORES:
        numbers = array("d")
        numbers.frombytes(body)
        return [None if number != number else number for number in numbers]
    texts = body.decode("utf-8").split("\0")
    if kind == worker.RAISED:
        raise Raised(texts[0], texts[1], int(texts[2]) if texts[2] else None, importing)
    raise Wrong(kind, texts)


# By the file and the hash of its content, the last used one last.
_processes: dict[tuple[str, str], Process] = {}
_lock = threading.Lock()


def process(file: str, sha256: str) -> Process:
    """The process for this content of the file; started if there is none. Returns at once."""
    with _lock:
        found = _processes.pop((file, sha256), None)
        if found is None or found.closed:
            found = Process(file)
        _processes[file, sha256] = found
        for key in list(_processes)[: max(0, len(_processes) - _KEPT)]:
            if not _processes[key].lock.locked():
                _processes.pop(key).close()
        return found


def _forked() -> None:
    """After a fork: forgets the parent's processes, so that the child starts its own."""
    global _lock
    for one in _processes.values():
        one.forget()
    _processes.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forked)
