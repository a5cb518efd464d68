"""Runs a function in a forked child with limits of time and memory: for parsing untrusted files."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import TypeVar

from posttrain.errors import PosttrainError

T = TypeVar("T")

Say = Callable[[str], None]  # announces the step that the child begins


class OutOfBoundsError(Exception):
    """A limit was exceeded, or the child died. `doing`: the step it had announced. `how`: `time`, `memory`, or how it
    died."""

    def __init__(self, doing: str, how: str) -> None:
        super().__init__(f"{doing}: {how}")
        self.doing, self.how = doing, how


def run(function: Callable[[Say], T], *, seconds: int, memory: int) -> T:
    """Runs `function` in a forked child and returns its result. The child may use `memory` bytes more than this process
    and, for each step that it announces by `say`, `seconds` of CPU time (three times that by the clock).

    A fork has the imports of this process and starts in milliseconds. `function` must not need threads that this
    process started before.

    Memory is limited on Linux only. On macOS system libraries may kill a forked child that uses them, so a signal
    proves nothing there: `function` is then run in this process, without limits.

    Raises:
        OutOfBoundsError: it exceeded a limit, or died.
        PosttrainError: the function raised it.
    """
    receiver, sender = Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        _child(function, sender, seconds, memory)
    sender.close()
    try:
        return _answer(receiver, child, seconds)
    except OutOfBoundsError as error:
        if sys.platform != "darwin" or not error.how.startswith("SIG") or error.how == "SIGKILL":
            raise
        return function(lambda what: None)
    finally:
        receiver.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _answer(receiver: Connection, child: int, seconds: int) -> T:  # pyright: ignore[reportInvalidTypeVarUse]
    doing, deadline = "", time.monotonic() + 3 * seconds
    while receiver.poll(max(0.0, deadline - time.monotonic())):
        try:
            kind, said = receiver.recv()
        except EOFError:
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            if code == -signal.SIGXCPU:
                raise OutOfBoundsError(doing, "time") from None
            how = signal.Signals(-code).name if code < 0 else f"code {code}"
            raise OutOfBoundsError(doing, how) from None
        if kind == "doing":
            doing, deadline = said, time.monotonic() + 3 * seconds
        elif kind == "died":
            raise OutOfBoundsError(doing, said)
        elif kind == "error":
            raise said
        else:
            return said
    raise OutOfBoundsError(doing, "time")


def _child(function: Callable[[Say], T], sender: Connection, seconds: int, memory: int) -> None:
    """Never returns: the exit handlers of this process belong to its parent."""

    def say(what: str) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + seconds)
        sender.send(("doing", what))

    taken = _data()
    gc.disable()  # it would walk, and so copy, all that the parent has
    try:
        _limit(resource.RLIMIT_CORE, 0)
        if taken is not None:
            _limit(resource.RLIMIT_DATA, taken + memory)
        sender.send(("result", function(say)))
    except MemoryError:
        if taken is not None:
            _limit(resource.RLIMIT_DATA, resource.RLIM_INFINITY)
        sender.send(("died", "memory"))
    except PosttrainError as error:
        sender.send(("error", pickle.loads(pickle.dumps(error))))
    except Exception as error:  # a bug of ours or of a library; raised again in the parent
        error.add_note("in a child with bounds of time and memory")
        sender.send(("error", error if _picklable(error) else RuntimeError(f"{type(error).__name__}: {error}")))
    except BaseException as error:  # what Rust makes of a panic
        sender.send(("died", f"{type(error).__name__}: {error}"))
    finally:
        os._exit(0)


def _picklable(error: BaseException) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # whatever its class does
        return False


def _limit(which: int, soft: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard):
        soft = hard
    resource.setrlimit(which, (soft, hard))


def _data() -> int | None:
    """Bytes of this process's private writable memory; None where the system does not report it: then only time is
    limited."""
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            found = next((line.split()[1] for line in file if line.startswith("VmData:")), None)
    except OSError:
        return None
    return None if found is None else int(found) << 10
