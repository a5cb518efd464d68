"""Runs one stage from its folder: in this process, or in a process of its own.

A process of its own gives all memory back when the stage ends, and a crash in it is an error here. It is
forked from a server that has the heavy libraries imported, so that a stage starts in milliseconds.
Not covered here: stages that span several processes (torchrun); those run `posttrain stage FOLDER`.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from posttrain import store
from posttrain.errors import PosttrainError, StageError
from posttrain.stages import Job, no_progress, run_stage

Progress = Callable[[int, int, str], None]

# What the server imports once. Read by its children through fork; the command itself never imports these.
PRELOAD = ["posttrain.training.preload"]


class Launcher(Protocol):
    """Runs the stage in `folder` (made by `Store.begin`) until its artifact is published."""

    def run(self, folder: Path, workers: int, progress: Progress) -> None: ...


def execute(folder: Path, workers: int, progress: Progress = no_progress) -> dict[str, Any]:
    """Run the stage described in `folder/stage.json` and publish what it wrote. Returns its metrics."""
    stage = store.read_json(folder / "stage.json")
    root = folder.parent.parent
    started = time.monotonic()
    job = Job(
        config=stage["config"],
        inputs={name: (root / path) for name, path in stage["inputs"].items()},  # an absolute path stays itself
        out=folder / "out",
        scratch=folder / "scratch",
        seed=stage["seed"],
        settings=stage["settings"],
        workers=workers,
        progress=progress,
    )
    metrics = run_stage(stage["stage"], job)
    manifest = {
        **{name: stage[name] for name in ("stage", "key", "input_keys", "outside")},
        "config": stage["decides"],
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 3),
        "metrics": metrics,
    }
    store.publish(folder, root / "artifacts", manifest)
    return metrics


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a stage's bits."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in ("posttrain", "torch", "transformers", "trl", "peft", "datasets", "accelerate"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class InProcess:
    """Runs the stage right here: for tests, and for `posttrain stage FOLDER` under torchrun."""

    def run(self, folder: Path, workers: int, progress: Progress) -> None:
        execute(folder, workers, progress)


class Forked:
    """Runs each stage in a process of its own, forked from a server with the libraries imported."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)

    def run(self, folder: Path, workers: int, progress: Progress) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        child = self._context.Process(target=_child, args=(folder, workers, sender), name=folder.name)
        child.start()
        sender.close()
        outcome: object = None
        try:
            while True:
                try:
                    kind, value = receiver.recv()
                except EOFError:
                    break
                if kind == "progress":
                    progress(*value)
                else:
                    outcome = value
            child.join()
        except BaseException:
            child.terminate()
            child.join(5)
            if child.is_alive():
                child.kill()
                child.join()
            raise
        if isinstance(outcome, BaseException):
            raise outcome
        if child.exitcode != 0:
            raise StageError(_died(folder, child.exitcode or 0))


def _died(folder: Path, exitcode: int) -> str:
    how = f"was killed by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"ended with code {exitcode}"
    hint = " (out of memory?)" if exitcode == -signal.SIGKILL else ""
    return f"{folder.name} {how}{hint}; log: {folder / 'scratch' / 'log.txt'}. The same command goes on from there."


def die_with_parent() -> None:
    """End this process when the one that asked for it is gone, so that nothing writes behind a new run's back."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _child(folder: Path, workers: int, sender: Connection) -> None:
    die_with_parent()
    import torch

    torch.set_num_threads(1)  # sampling and scoring use processes; training asks for more threads where they pay
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    log = (folder / "scratch" / "log.txt").open("a", encoding="utf-8", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    last = 0.0

    def progress(done: int, total: int, unit: str) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > 0.2:
            last = time.monotonic()
            sender.send(("progress", (done, total, unit)))

    outcome: BaseException | None = None
    try:
        execute(folder, workers, progress)
    except PosttrainError as error:
        outcome = error
    except Exception as error:
        traceback.print_exc()
        stage = json.loads((folder / "stage.json").read_text(encoding="utf-8"))["stage"]
        outcome = StageError(
            f"{stage} failed: {type(error).__name__}: {error}; log: {folder / 'scratch' / 'log.txt'}. "
            "The same command goes on from the last finished stage."
        )
    with contextlib.suppress(BrokenPipeError):
        sender.send(("outcome", outcome if outcome is None or _picklable(outcome) else StageError(str(outcome))))
    sender.close()


def _picklable(error: BaseException) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True
