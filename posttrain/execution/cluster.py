"""Runs stages on a cluster whose machines share the run's folder: trainings, and what measures a device, as one task
each, sampling and scoring as several, which make a part of the shards each. All else takes seconds, and runs here.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from posttrain.config import cluster as config
from posttrain.config.engine import Compute
from posttrain.errors import MissingShardsError, PosttrainError, StageError
from posttrain.execution import task
from posttrain.execution.launcher import Ended, Forked, Launcher, Progress, gather
from posttrain.stages.registry import STAGES
from posttrain.storage.files import read_json

_TELLS = 1.0  # seconds between looks for progress, in files of a shared folder


class Cluster(Protocol):
    """Where tasks run: a scheduler. `looks_every`: seconds between two looks whether tasks have ended. A round has some
    twenty stages, so that is short where a look costs nothing."""

    looks_every: float

    def check(self, folder: Path) -> None:
        """Has a task read a new folder of the run, and compares what it says: see `posttrain.execution.task.compare`.

        Raises:
            StageError: the cluster is not there, refuses work, or is not what is needed.
        """
        ...

    def submit(self, folder: Path, stage: Mapping[str, Any], shards: int) -> None:
        """Begins the whole stage in `folder`, such as a training (`shards` 0), or tasks for so many shards that it
        lacks. Where those of an earlier command run still, they are kept.

        Raises:
            StageError: they are refused, or no node is large enough.
        """
        ...

    def ended(self, folder: Path) -> bool:
        """Whether all tasks of the stage have ended.

        Raises:
            PosttrainError: one failed, with its own error, or was lost. The others are ended then.
        """
        ...

    def cancel(self, folder: Path) -> None:
        """Ends the tasks of the stage. What they finished stays."""
        ...


@dataclass
class _Away:
    """How a stage is run. `lacks`: its shards that were not there, None for a whole stage; `told`: progress."""

    workers: int
    background: bool
    lacks: MissingShardsError | None = None
    told: int = -1
    asked: float = 0.0  # when `told` was looked up


class OnCluster:
    """A launcher: see `posttrain.execution.launcher.Launcher`."""

    here = False

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._here = cluster, Forked(gather)
        self._away: dict[Path, _Away] = {}
        self._checked, self._refused = False, list[Ended]()
        self._back: dict[Path, _Away] = {}  # stages that are here

    def start(self, folder: Path, workers: int, background: bool = False) -> None:
        how = _Away(workers, background)
        stage = read_json(folder / "stage.json")
        spec = STAGES[stage["stage"]]
        if spec.trained or spec.on_device:
            refused = self._submit(folder, stage, how, 0)
            self._refused += [refused] if refused else []
        else:
            self._gather(folder, how)

    def _gather(self, folder: Path, how: _Away) -> None:
        self._back[folder] = how
        self._here.start(folder, how.workers, how.background)

    def wait(self) -> Progress | Ended:
        while True:
            if self._refused:
                return self._refused.pop(0)
            found = None
            if self._back:
                found = self._here.wait_for(self._cluster.looks_every if self._away else None)
            else:
                time.sleep(self._cluster.looks_every)
            if isinstance(found, Progress):
                return found
            if found:
                ended = self._came_back(found)
                if ended:
                    return ended
            for folder, how in list(self._away.items()):
                news = self._look(folder, how)
                if news:
                    return news

    def _came_back(self, found: Ended) -> Ended | None:
        """A stage that was gathered here: done, or short of shards, which are made on the cluster then."""
        how, lacks = self._back.pop(found.folder), found.error
        if not isinstance(lacks, MissingShardsError):
            return found
        if str(lacks) == str(how.lacks):
            return Ended(found.folder, StageError(f"the tasks of the cluster ended, and still {lacks}"))
        how.lacks = lacks
        stage = read_json(found.folder / "stage.json")
        return self._submit(found.folder, stage, how, lacks.count)

    def _submit(self, folder: Path, stage: Mapping[str, Any], how: _Away, shards: int) -> Ended | None:
        """Begins the tasks of a stage; its end if that is refused."""
        try:
            if not self._checked:
                with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".cluster-") as seen:
                    self._cluster.check(Path(seen))
                self._checked = True
            self._cluster.submit(folder, stage, shards)
        except PosttrainError as error:
            return Ended(folder, error)
        self._away[folder] = how
        return None

    def _look(self, folder: Path, how: _Away) -> Progress | Ended | None:
        try:
            ended = self._cluster.ended(folder)
        except PosttrainError as error:
            del self._away[folder]
            return Ended(folder, error)
        if ended:
            del self._away[folder]
            if how.lacks is None:
                os.listdir(task.artifact(folder).parent)  # NFS looks anew: it may hold on to what was not there before
                return Ended(folder)
            self._gather(folder, how)
            return None
        return self._progress(folder, how)

    def _progress(self, folder: Path, how: _Away) -> Progress | None:
        """What a training says in its file, or the shards that are there."""
        now = time.monotonic()
        if now - how.asked < _TELLS:
            return None
        how.asked = now
        if how.lacks:
            there = len(list((folder / "scratch").rglob("shard-*.parquet")))
            done, total, unit = there, max(there, how.lacks.count), "shards"
        else:
            try:
                done, total, unit = json.loads((folder / "scratch" / task.PROGRESS).read_text("utf-8"))
            except (OSError, ValueError):
                return None
        if done == how.told:
            return None
        how.told = done
        return Progress(folder, done, total, unit)

    def stop(self) -> None:
        for folder in self._away:
            self._cluster.cancel(folder)
        self._away.clear()
        self._back.clear()
        self._here.stop()


def launcher_of(compute: Compute) -> Launcher:
    """The launcher of a recipe: of this machine, or of its cluster."""
    if compute.cluster is None:
        return Forked()
    return OnCluster(_cluster(compute.cluster, compute.processes))


def _cluster(settings: config.Slurm | config.Ray, processes: int | None) -> Cluster:
    if settings.kind == "ray":
        from posttrain.execution.ray import Ray

        return Ray(settings, processes)
    from posttrain.execution.slurm import Slurm

    return Slurm(settings, processes)
