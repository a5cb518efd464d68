"""Stops a long command at once on Ctrl-C or SIGTERM, with a line that says how to go on."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import typer

from posttrain.commands.terminal import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Raised in the main thread when the signal `number` arrives."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """A context in which Ctrl-C and SIGTERM end the command with exit code 130 or 143, after its cleanup."""
    before = {number: signal.signal(number, _stop) for number in SIGNALS}
    try:
        yield
    except Stopped as stopped:
        name = "Ctrl-C" if stopped.number == signal.SIGINT else signal.Signals(stopped.number).name
        command = shlex.join(["posttrain", *sys.argv[1:]])
        say(f"\nstopped by {name}; what is whole stays. To go on from there: {command}", error=True)
        raise typer.Exit(128 + stopped.number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # one is enough: a second would break into the cleaning up
    raise Stopped(number)
