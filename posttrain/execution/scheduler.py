"""The scheduler: starts each stage as soon as its inputs exist, several at once where the recipe allows it.

Keys are known before artifacts, so the loop submits a whole round, in order, and waits only where it must decide
something. Independent stages overlap: a reward model is trained while candidates are sampled, and held-out prompts are
answered during the next round.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.errors import InputError, PosttrainError
from posttrain.execution import resources, retry
from posttrain.execution.launcher import Launcher, Progress
from posttrain.execution.progress import Watcher
from posttrain.models import check_snapshot
from posttrain.storage.store import Store


@dataclass(frozen=True)
class Planned:
    """A queued stage. `stage`: the content of its `stage.json`."""

    key: str
    number: int  # of the round
    stage: Mapping[str, Any]
    reads: frozenset[str]  # names of the folders that it reads
    background: bool  # no other stage waits for it soon, so it yields to the others
    name: str  # within the round


class StageQueue:
    """Queued and running stages. Ready ones start in the order in which they were added."""

    def __init__(
        self, store: Store, launcher: Launcher, watcher: Watcher, workers: int, at_once: int, attempts: int = 1
    ) -> None:
        self.store, self.launcher, self.watcher = store, launcher, watcher
        self.workers, self.at_once, self.attempts = workers, at_once, attempts
        self._waiting: dict[str, Planned] = {}
        self._running: dict[Path, tuple[Planned, float]] = {}
        self._failures: dict[str, list[Exception]] = {}  # by key, in this command
        self._outside: set[Path] = set()  # models from outside the run that were looked at

    def __contains__(self, key: str) -> bool:
        return key in self._waiting or any(planned.key == key for planned, _ in self._running.values())

    def add(self, planned: Planned) -> None:
        self._waiting[planned.key] = planned

    def take_waiting(self) -> list[Planned]:
        """Removes and returns the waiting stages, in order."""
        waiting = list(self._waiting.values())
        self._waiting.clear()
        return waiting

    def busy(self, number: int) -> bool:
        """Whether a stage of this round is waiting or running."""
        running = [planned for planned, _ in self._running.values()]
        return any(planned.number == number for planned in [*self._waiting.values(), *running])

    def empty(self) -> bool:
        return not self._waiting and not self._running

    def advance(self) -> Planned | None:
        """Starts the ready stages and waits for one event. Returns the stage that published its artifact, if one did.

        Raises a failed stage's exception.
        """
        self._start_ready()
        news = self.launcher.wait()
        planned, started = self._running[news.folder]
        if isinstance(news, Progress):
            self.watcher.progress(planned.number, planned.name, news.done, news.total, news.unit)
            return None
        del self._running[news.folder]
        if news.error is not None:
            if self._tries_again(planned, news.folder, news.error, time.monotonic() - started):
                return None
            if isinstance(news.error, InputError):
                shutil.rmtree(news.folder, ignore_errors=True)  # refused: there is nothing to go on from
            raise news.error
        if not self.store.has(planned.key):
            log = news.folder / "scratch" / "log.txt"
            raise PosttrainError(f"{planned.name} ended without publishing {planned.key}; log: {log}")
        metrics = self.store.manifest(planned.key)["metrics"]
        self.watcher.finished(planned.number, planned.name, time.monotonic() - started, metrics)
        return planned

    def stop(self) -> None:
        self.launcher.stop()
        self._waiting.clear()
        self._running.clear()

    def _start_ready(self) -> None:
        for key, planned in list(self._waiting.items()):
            if len(self._running) >= self.at_once:
                return
            if any(read in self for read in planned.reads):
                continue
            self._check(planned)
            need = resources.of_stage(planned.stage, self.store.root)
            need = need if self.launcher.here else replace(need, memory=0.0)
            resources.check(need, self.store.root, planned.name)
            del self._waiting[key]
            self._start(planned)

    def _start(self, planned: Planned, workers: int | None = None) -> None:
        folder = self.store.begin(planned.key, planned.stage)
        self.watcher.started(planned.number, planned.name)
        self._running[folder] = (planned, time.monotonic())
        self.launcher.start(folder, workers or self.workers, planned.background)

    def _tries_again(self, planned: Planned, folder: Path, error: Exception, seconds: float) -> bool:
        """Records the failure, and starts the stage again if `retry` says so. Returns whether it did."""
        failures = self._failures.setdefault(planned.key, [])
        failures.append(error)
        how = retry.next_try(failures, self.attempts)
        if how is None and len(failures) == 1:
            return False
        retry.note(folder, error, seconds, how)
        if how is None:
            return False
        if how == "halved":
            retry.halve(folder, planned.stage)
        self.watcher.tries_again(planned.number, planned.name, f"{retry.IN_WORDS[how]}: {error}")
        self._start(planned, retry.processes(self.workers, len(failures)))
        return True

    def _check(self, planned: Planned) -> None:
        """Verifies the hashes of the stage's inputs, each once per command. Raises DamagedError."""
        for path in map(Path, planned.stage["inputs"].values()):
            if self.store.has(path.name):
                self.store.check(path.name)
            elif path not in self._outside:
                check_snapshot(path)
                self._outside.add(path)
