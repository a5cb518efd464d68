"""Stages and rounds on a cluster, and things that are done to it meanwhile."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from posttrain.execution import task
from posttrain.execution.cluster import Cluster, OnCluster
from posttrain.storage import store
from posttrain.storage.store import Store
from support.faults import REDUCED
from support.interrupted import Training
from support.planned import done, planned

T = TypeVar("T")
# Some ten seconds: time to do something to it.
LONG = {"num_train_epochs": 100, "save_steps": 20, "max_steps": -1}


def round_of(run: Path, *changes: str) -> list[str]:
    """The command that runs a round of the quickstart in seconds."""
    words = [word for key, value in REDUCED.items() for word in ("--set", f"{key}={value}")]
    further = [word for change in changes for word in ("--set", change)]
    return [sys.executable, "-m", "posttrain", "round", "--n", "1", "--run", str(run), *words, *further]


def made(run: Path) -> dict[str, dict[str, str]]:
    """The hashes of the files of each artifact."""
    return {path.name: store.read_manifest(path)["files"] for path in (run / "artifacts").iterdir()}


def when(seen: Callable[[], bool], what: Callable[[], object], seconds: float = 120) -> threading.Thread:
    """Does `what` in a thread once `seen` says so."""

    def look() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if seen():
                what()
                return
            time.sleep(0.1)

    thread = threading.Thread(target=look)
    thread.start()
    return thread


def meanwhile(work: Callable[[], T], seen: Callable[[], bool], what: Callable[[], object]) -> T:
    """What `work` returns, which runs in a thread; once `seen` says so, `what` is done in this one."""
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(work)
        while not going.done() and not seen():
            time.sleep(0.05)
        if not going.done():
            what()
        return going.result()


def trained(root: Path, training: Training, cluster: Cluster) -> tuple[Store, list[str]]:
    """The training as a stage on the cluster, and what the watcher was told of tries."""
    told = done(root, OnCluster(cluster), planned(training), workers=1)
    return Store(root), told


def at_step(root: Path, step: int) -> Callable[[], bool]:
    """Whether the training says that it has done so many steps."""
    said = root / "work" / "sft-0123" / "scratch" / task.PROGRESS
    return lambda: said.exists() and json.loads(said.read_text())[0] >= step
