"""Runs the functions of one reward file in their own process, for `client`.

    python -P worker.py CHANNEL LIFE TRACE      (inherited file descriptors)

Two processes: the first only ends the second, and all children of the function, once nobody holds the other end of
LIFE for whatever reason; code that never returns to Python cannot block it. Imports little, since every stage that
scores starts one. On macOS the second is spawned (with the last argument `serve`), since system libraries must not be
used after a fork there (see `os.fork` in Python's documentation: `urllib.request` among them).

Requests on CHANNEL are pickles: first the file to import, then each call. Replies are not pickles, so the function's
return value can only become numbers and texts: one byte of kind, then float64s (NaN for no score) or the texts of a
fault, separated by zero bytes. TRACE gets Python's traceback after a crash, or on SIGUSR2.
"""

from __future__ import annotations

import _thread
import contextlib
import faulthandler
import math
import os
import pickle
import signal
import sys
import time
from array import array
from collections.abc import Callable
from io import BufferedReader
from types import ModuleType
from typing import Any

READY, SCORES, RAISED, LENGTH, NUMBER, NO_LIST, UNREADABLE = b"y", b"s", b"r", b"l", b"n", b"t", b"u"
_GRACE = 0.5  # seconds that a worker has to end by itself: what it runs at its exit


def main(channel: int, life: int, trace: int) -> None:
    worker = _spawned(channel, life, trace) if sys.platform == "darwin" else os.fork()
    if worker == 0:
        os.setpgid(0, 0)
        os.close(life)
        _serve(channel, trace)
    else:
        with contextlib.suppress(OSError):  # it has done so itself, or has ended
            os.setpgid(worker, worker)
        os.close(channel)
        os.close(trace)
        _guard(worker, life)


def _spawned(channel: int, life: int, trace: int) -> int:
    """Spawns the worker where a fork is not safe; returns its process id. It inherits CHANNEL and TRACE."""
    os.set_inheritable(life, False)
    call = [sys.executable, "-P", __file__, str(channel), str(trace), "serve"]
    return os.posix_spawn(sys.executable, call, os.environ, setpgroup=0)


def _guard(worker: int, life: int) -> None:
    """Reports on LIFE how the worker ended, and kills all that it started."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(life, 1)
        time.sleep(_GRACE)
        _kill(worker)

    _thread.start_new_thread(watch, ())
    _, status = os.waitpid(worker, 0)
    _kill(worker)
    with contextlib.suppress(OSError):
        os.write(life, b"%d" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _serve(channel: int, trace: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a stage ignores it, and that is inherited
    faulthandler.enable(trace)
    faulthandler.register(signal.SIGUSR2, trace, all_threads=False)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    requests = os.fdopen(channel, "rb")
    me, begin = os.getpid(), _receive(requests)
    if begin is None:
        return
    sys.path[:] = begin["path"]
    module = _main_module(begin["file"])
    _send(channel, READY + b"%d" % me)
    failed = _attempted(lambda: _run(begin["file"], module), module)
    _send(channel, RAISED + failed if failed else READY)
    while not failed and (call := _receive(requests)) is not None:
        reply = _called(module, **call)
        if os.getpid() != me:  # the function forked, and came back twice
            os._exit(0)
        _send(channel, reply)


def _main_module(file: str) -> ModuleType:
    """An empty module for the file, under the name that multiprocessing gives to a main module.

    So children that the function starts, in whatever way, find objects that are pickled by name; code under
    `if __name__ == "__main__"` never runs.
    """
    module = ModuleType("__mp_main__")
    module.__file__ = file
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    return module


def _run(file: str, module: ModuleType) -> None:
    """Imports the file, without reading or writing a bytecode cache, which could be stale if the mtime is the same."""
    with open(file, "rb") as source:
        exec(compile(source.read(), file, "exec", dont_inherit=True), module.__dict__)


def _called(module: ModuleType, function: str, rows: int, given: dict[str, Any], folder: str) -> bytes:
    scores: Any = None

    def call() -> None:
        nonlocal scores
        with contextlib.suppress(OSError):
            os.chdir(folder)
        scores = getattr(module, function)(**given)

    failed = _attempted(call, module)
    return RAISED + failed if failed else _checked(scores, rows)


def _attempted(run: Callable[[], object], module: ModuleType) -> bytes | None:
    """Whatever exception `run` raised: its name, text, and the reward file's last line in the traceback."""
    try:
        run()
        return None
    except BaseException as error:
        line, at = "", error.__traceback__
        while at is not None:
            if at.tb_frame.f_code.co_filename == module.__file__:
                line = str(at.tb_lineno)
            at = at.tb_next
        return _texts(type(error).__name__, _shown(str, error), line)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that it left would go off in the next call
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # the function may have closed or replaced it
                stream.flush()


def _checked(scores: Any, rows: int) -> bytes:
    """The scores as float64s, or the fault. Arrays and tensors are recognised by their `tolist`.

    The return value may do anything when it is read: raise, never end, report a wrong length.
    """
    kind, numbers = type(scores).__name__, array("d")
    try:
        scores = scores.tolist() if hasattr(scores, "tolist") else scores
        if isinstance(scores, (str, bytes, dict, set, frozenset)) or not hasattr(scores, "__len__"):
            return NO_LIST + _texts(kind)
        if len(scores) != rows:
            return LENGTH + _texts(str(len(scores)))
        for row, score in enumerate(scores):
            if row == rows:
                return LENGTH + _texts(f"more than {rows}")
            number = _number(score)
            if number is not None and not math.isfinite(number):
                return NUMBER + _texts(str(row), _shown(repr, score))
            numbers.append(math.nan if number is None else number)
    except BaseException as error:
        return UNREADABLE + _texts(kind, type(error).__name__, _shown(str, error))
    return SCORES + numbers.tobytes() if len(numbers) == rows else LENGTH + _texts(str(len(numbers)))


def _number(score: Any) -> float | None:
    """The score as a float; None for None, NaN for anything that is not a number."""
    if score is None:
        return None
    try:
        return math.nan if isinstance(score, (str, bytes)) else float(score)
    except Exception:  # whatever its class does; of a tensor of several numbers a RuntimeError
        return math.nan


def _shown(how: Callable[[Any], str], value: object) -> str:
    try:
        return " ".join(how(value).split())
    except Exception as error:
        return f"<its text raised {type(error).__name__}>"


def _texts(*texts: str) -> bytes:
    return "\0".join(text.replace("\0", " ") for text in texts).encode("utf-8", "backslashreplace")


def _receive(requests: BufferedReader) -> Any:
    """The next request; None at the end of the channel, also in the middle of a request."""
    try:
        return pickle.load(requests)
    except (EOFError, pickle.UnpicklingError):
        return None


def _send(channel: int, reply: bytes) -> None:
    rest = memoryview(len(reply).to_bytes(8, "big") + reply)
    while rest:
        rest = rest[os.write(channel, rest) :]


if __name__ == "__main__":
    if sys.argv[-1] == "serve":
        _serve(*map(int, sys.argv[1:3]))
    else:
        main(*map(int, sys.argv[1:]))
