"""How long somebody else's code is waited for."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Overdue(BaseException):
    """What was waited for took too long. No Exception: code that swallows those does not swallow this."""


@contextlib.contextmanager
def waits(seconds: float | None) -> Iterator[None]:
    """Raises Overdue in what runs within it, after so many seconds; None: never.

    Not covered: code that never comes back to Python (a loop in C), code that sets the process's alarm itself (then its
    own holds), other threads than the main one, and Windows.
    """
    main = threading.current_thread() is threading.main_thread()
    if seconds is None or not main or not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, _overdue)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _overdue(number: int, frame: FrameType | None) -> None:
    raise Overdue
