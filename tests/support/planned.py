"""A stage as the scheduler is given it."""

from __future__ import annotations

from pathlib import Path

from posttrain.execution.launcher import Launcher
from posttrain.execution.progress import Silent
from posttrain.execution.scheduler import Planned, StageQueue
from posttrain.storage.store import Store
from support.interrupted import Training


def planned(training: Training) -> Planned:
    stage = {
        "stage": training.name,
        "key": f"{training.name}-0123",
        "input_keys": dict.fromkeys(training.inputs, "outside-0"),
        "inputs": {role: str(path) for role, path in training.inputs.items()},
        "outside": {},
        "config": training.config,
        "runtime": training.config,
        "seed": 0,
    }
    return Planned(stage["key"], 1, stage, frozenset(), False, training.name)


def done(root: Path, launcher: Launcher, what: Planned, workers: int = 8, attempts: int = 3) -> list[str]:
    """What the watcher was told of tries, once the stage is done."""
    told: list[str] = []

    class Watching(Silent):
        def tries_again(self, number: int, stage: str, reason: str) -> None:
            told.append(reason)

    run = Store(root)
    with run.session():
        queue = StageQueue(run, launcher, Watching(), workers, 1, attempts)
        queue.add(what)
        try:
            while not queue.empty():
                queue.advance()
        finally:
            queue.stop()
    return told
