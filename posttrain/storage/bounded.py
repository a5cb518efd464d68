"""A function in a forked child with bounds of time and memory: for what a stranger's file may make endless."""

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

Say = Callable[[str], None]  # told what the child begins with


class OutOfBoundsError(Exception):
    """`doing`: what the child had said that it began. `how`: `time`, `memory`, or how it died."""

    def __init__(self, doing: str, how: str) -> None:
        super().__init__(f"{doing}: {how}")
        self.doing, self.how = doing, how


def run(function: Callable[[Say], T], *, seconds: int, memory: int) -> T:
    """What `function` returns in a child that has the memory of this process and may take `memory` bytes more, and
    for each thing that it says it begins `seconds` of a processor (three times as long by the clock).

    The child is forked, so it has what is imported here and starts in milliseconds. It must not need a thread that
    this process began before.

    Memory is bounded on Linux alone, where the system tells how much there is. On macOS the system's libraries may end
    a child of a fork for being used in it: a signal that ended one proves nothing there, and `function` is then run in
    this process, without bounds.

    Raises:
        OutOfBoundsError: it took too long or too much, or died.
        PosttrainError: as the function raised it.
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
    """Never returns: what this process would do at its end is its parent's."""

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
    except Exception as error:  # a mistake of ours or of a library, told as one of the process that asked
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
    """Bytes of private memory that this process may write to; None where the system does not tell: then the child is
    bounded in time alone."""
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            found = next((line.split()[1] for line in file if line.startswith("VmData:")), None)
    except OSError:
        return None
    return None if found is None else int(found) << 10
