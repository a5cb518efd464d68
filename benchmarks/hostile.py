"""Hostile inputs, each read in a child forked from this warm process, and what became of each.

Used by the fuzzers beside it. A reader may return or raise one of our errors; those are counted by their rule. An error
of ours without a rule counts as `other`, any other exception as `traceback`; a child that takes too long as `hang`, too
much memory as `memory`, and one that dies as `died`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil

from posttrain.errors import PosttrainError

WRONG = ("other", "traceback", "hang", "memory", "died")
_EVERY = 0.02  # seconds between two looks at a child's memory


@dataclass(frozen=True)
class Outcome:
    """`kind`: `read`, the rule that refused, or one of WRONG. `grown`: bytes of the process tree beyond what the child
    had as it began, at their peak, sampled."""

    case: int
    kind: str
    detail: str
    seconds: float
    grown: int


def run(
    cases: Sequence[Any],
    read: Callable[[Any], object],
    *,
    seconds: float = 60.0,
    memory: int = 2 << 30,
    batch: int = 50,
) -> list[Outcome]:
    """The outcome of `read(case)` for each case, in order. A child reads up to `batch` cases, one after the other; it
    is killed, and the next begins after the case at fault, where one takes longer than `seconds` or grows by more than
    `memory` bytes.
    """
    outcomes: list[Outcome] = []
    while len(outcomes) < len(cases):
        outcomes += _one_child(
            cases, range(len(outcomes), min(len(outcomes) + batch, len(cases))), read, seconds, memory
        )
    return outcomes


def _one_child(
    cases: Sequence[Any], which: range, read: Callable[[Any], object], seconds: float, memory: int
) -> list[Outcome]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(cases, which, read, sender))
    child.start()
    sender.close()
    assert child.pid
    outcomes: list[Outcome] = []
    begun, before = time.monotonic(), _resident(child.pid)
    peak, ended = before, ""
    while len(outcomes) < len(which) and not ended:
        told = receiver.poll(_EVERY)
        peak, took = max(peak, _resident(child.pid)), time.monotonic() - begun
        if told:
            try:
                kind, detail = receiver.recv()
            except EOFError:
                ended = "died"
                break
            outcomes.append(Outcome(which[len(outcomes)], kind, detail, took, peak - before))
            begun, before = time.monotonic(), _resident(child.pid)
            peak = before
        elif peak - before > memory:
            ended = "memory"
        elif took > seconds:
            ended = "hang"
    if ended:
        outcomes.append(Outcome(which[len(outcomes)], ended, "", time.monotonic() - begun, peak - before))
    _end(child.pid)
    child.join()
    return outcomes


def _child(cases: Sequence[Any], which: range, read: Callable[[Any], object], sender: Connection) -> None:
    os.setsid()  # what it starts is ended with it
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    for at in which:
        sender.send(_outcome(cases[at], read))


def _outcome(case: Any, read: Callable[[Any], object]) -> tuple[str, str]:
    try:
        read(case)
    except PosttrainError as error:
        return error.rule or "other", str(error)
    except BaseException:
        return "traceback", traceback.format_exc()
    return "read", ""


def _resident(pid: int) -> int:
    """Bytes of a process and all that it started."""
    total = 0
    try:
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            total += each.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def _end(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # the group is there once the child has made it
        try:
            kill(pid, signal.SIGKILL)
            return
        except ProcessLookupError:
            continue


def table(name: str, outcomes: Sequence[Outcome], describe: Callable[[int], str] = str) -> bool:
    """Prints how often each outcome came, and each wrong one with its input. Whether there is none of those."""
    counts = Counter(outcome.kind for outcome in outcomes)
    slowest = max((outcome.seconds for outcome in outcomes), default=0.0)
    grown = max((outcome.grown for outcome in outcomes), default=0)
    print(f"{name}: {len(outcomes):,} inputs, slowest {slowest:.1f} s, most memory {grown / 2**20:,.0f} MiB")
    for kind, count in counts.most_common():
        print(f"  {count:>7,}  {kind}")
    wrong = [outcome for outcome in outcomes if outcome.kind in WRONG]
    for outcome in wrong[:20]:
        print(f"{name} {outcome.kind}: {describe(outcome.case)}\n{outcome.detail}", file=sys.stderr)
    return not wrong
