"""How long stages take that share a machine: a simulation of `posttrain.execution.scheduler`. Pure.

Stages start in order as soon as their inputs are done, up to `at_once` of them. Cores are shared: a stage uses up to
`width`, in equal parts if that is more than there are, and background stages get the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A stage in the background gives way (nice 19), but is never quite starved.
_BACKGROUND = 0.015


@dataclass(frozen=True)
class Task:
    """`work`: core-seconds. `width`: cores that it can use. `memory`: bytes while it runs."""

    key: str
    work: float
    width: float = 1.0
    waits: frozenset[str] = frozenset()
    background: bool = False
    memory: float = 0.0


@dataclass(frozen=True)
class Timeline:
    """The end of each task in seconds from the start, and the peak memory of tasks that run together, in bytes."""

    ends: Mapping[str, float]
    memory: float

    @property
    def seconds(self) -> float:
        return max(self.ends.values(), default=0.0)


def simulate(tasks: Sequence[Task], cores: float, at_once: int) -> Timeline:
    """Simulates the tasks, in order, at most `at_once` at a time, on `cores`.

    Raises:
        ValueError: a task waits for one that is not there or comes after it.
    """
    waiting, ends, left = list(tasks), dict[str, float](), dict[str, float]()
    running: list[Task] = []
    now = memory = 0.0
    while waiting or running:
        for task in list(waiting):
            if len(running) < at_once and task.waits <= ends.keys():
                waiting.remove(task)
                running.append(task)
                left[task.key] = task.work
        if not running:
            raise ValueError(f"{waiting[0].key} waits for what never ends")
        memory = max(memory, sum(task.memory for task in running))
        speeds = dict(zip((task.key for task in running), _shares(running, cores), strict=True))
        passed = min(left[task.key] / speeds[task.key] for task in running)
        now += passed
        for task in list(running):
            left[task.key] -= passed * speeds[task.key]
            if left[task.key] <= 1e-9:
                running.remove(task)
                ends[task.key] = now
    return Timeline(ends, memory)


def _shares(running: Sequence[Task], cores: float) -> list[float]:
    """The cores of each task: in proportion to their processes, never more than a task can use."""
    shares = [0.0] * len(running)
    first = [at for at, task in enumerate(running) if not task.background]
    last = [at for at, task in enumerate(running) if task.background]
    kept = _BACKGROUND * cores if first and last else 0.0
    rest = cores - kept - _fill(running, first, cores - kept, shares)
    _fill(running, last, rest + kept, shares)
    return shares


def _fill(running: Sequence[Task], chosen: Sequence[int], cores: float, shares: list[float]) -> float:
    """Shares `cores` among the chosen tasks in proportion to their width; returns the cores used."""
    wanted = sum(running[at].width for at in chosen)
    part = min(1.0, cores / wanted) if wanted else 0.0
    for at in chosen:
        shares[at] = running[at].width * part
    return wanted * part
