"""Runs stages from their work folders: in this process, or each in its own process, several at once.

A stage's own process returns all memory when the stage ends, and a crash in it becomes an error here. It is forked from
a server process that has imported the heavy libraries, so that a stage starts in milliseconds.
The processes of one training: posttrain.training.ranks. Other machines: posttrain.execution.cluster.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, cast

from posttrain.errors import MissingShardsError, PosttrainError, StageCrashedError, portable
from posttrain.execution import retry, tokenizer_check
from posttrain.job import Job, no_progress
from posttrain.stages import run_stage
from posttrain.storage import lock, store
from posttrain.storage.files import read_json
from posttrain.storage.part import Part
from posttrain.storage.redact import Log, redact
from posttrain.system import die_with_parent, one_thread_after_fork, versions


@dataclass(frozen=True)
class Progress:
    """Progress of the stage in `folder`: `done` of `total`, in `unit`."""

    folder: Path
    done: int
    total: int
    unit: str


@dataclass(frozen=True)
class Ended:
    """The stage in `folder` has published its artifact, or failed with `error`."""

    folder: Path
    error: Exception | None = None


# What the server imports once. Read by its children through fork; the command itself never imports these.
PRELOAD = ["posttrain.execution.preload"]
_PATIENCE = 1.5  # seconds that stages have to end when the command is stopped: enough to publish what is small


class Launcher(Protocol):
    """Runs stages, each from a folder made by `Store.begin` to its published artifact."""

    here: bool
    """Whether they take this machine's memory."""

    def start(self, folder: Path, workers: int, background: bool = False) -> None:
        """Begin a stage. `background`: no other stage waits for it soon, so it gives way to
        them."""
        ...

    def wait(self) -> Progress | Ended:
        """Blocks until a started stage reports progress or ends."""
        ...

    def stop(self) -> None:
        """Ends the stages that still run. What they finished stays in their scratch folders."""
        ...


def execute(folder: Path, workers: int, progress: Callable[[int, int, str], None] = no_progress) -> dict[str, Any]:
    """Runs the stage described in `folder/stage.json` and publishes its artifact. Returns its metrics."""
    with lock.alone(folder / "lock"):
        return publish(folder, workers, progress)


def gather(folder: Path, workers: int, progress: Callable[[int, int, str], None] = no_progress) -> dict[str, Any]:
    """As `execute`, from shards that the tasks of a cluster made.

    Raises:
        MissingShardsError: some are not there.
    """
    with lock.alone(folder / "lock"):
        return publish(folder, workers, progress, Part())


def make_part(folder: Path, part: Part, workers: int) -> bool:
    """Makes a part of the shards of a stage, beside other processes that make others. Returns whether all shards are
    there now: what a stage does with them is not kept, `gather` does it again."""
    stage = read_json(folder / "stage.json")
    with tempfile.TemporaryDirectory(dir=folder / "scratch", prefix=f"part-{part.index}-") as out:
        job = replace(job_of(stage, folder, workers), out=Path(out), part=part)
        try:
            run_stage(stage["stage"], job)
        except MissingShardsError:
            return False
    return True


def publish(
    folder: Path, workers: int, progress: Callable[[int, int, str], None] = no_progress, part: Part | None = None
) -> dict[str, Any]:
    """Runs the stage and publishes its artifact, where nobody else can be at it. Returns its metrics."""
    stage = read_json(folder / "stage.json")
    root = folder.parent.parent
    started = time.monotonic()
    job = replace(job_of(stage, folder, workers, progress), part=part)
    read = tokenizer_check.of_inputs(job.inputs)
    metrics = run_stage(stage["stage"], job)
    made = tokenizer_check.fingerprint(job.out)
    if read and made:
        tokenizer_check.check(read, "what it read", made, f"what {stage['stage']} made")
    manifest = {
        **{name: stage[name] for name in ("stage", "key", "input_keys", "outside", "config")},
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 3),
        "attempts": retry.failed_before(folder),
        **({"tokens": made or read} if made or read else {}),
        "metrics": metrics,
    }
    with _finishing():
        store.publish(folder, root / "artifacts", manifest)
    return metrics


def job_of(
    stage: Mapping[str, Any], folder: Path, workers: int, progress: Callable[[int, int, str], None] = no_progress
) -> Job:
    """The job of a stage, as its `stage.json` describes it, in its work folder."""
    root = folder.parent.parent
    return Job(
        config=stage["config"],
        inputs={name: (root / path) for name, path in stage["inputs"].items()},  # an absolute path stays itself
        out=folder / "out",
        scratch=folder / "scratch",
        seed=stage["seed"],
        runtime=stage["runtime"],
        workers=workers,
        progress=progress,
    )


@contextlib.contextmanager
def _finishing() -> Iterator[None]:
    """Holds SIGTERM off, so that a finished artifact is published when the command is stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# A folder, workers, progress: as in `execute`.
Run = Callable[[Path, int, Callable[[int, int, str], None]], object]


class InProcess:
    """Runs stages in this process, one after the other: for tests."""

    here = True

    def __init__(self) -> None:
        self._started: list[tuple[Path, int]] = []

    def start(self, folder: Path, workers: int, background: bool = False) -> None:
        self._started.append((folder, workers))

    def wait(self) -> Ended:
        folder, workers = self._started.pop(0)
        try:
            execute(folder, workers)
        except Exception as error:
            return Ended(folder, error)
        return Ended(folder)

    def stop(self) -> None:
        self._started.clear()


class Forked:
    """Runs each stage in a process of its own, forked from a server with the libraries imported.

    `run`: the function that the process calls, `execute` or a wrapper of it; it is imported by its name.
    """

    here = True

    def __init__(self, run: Run = execute) -> None:
        if "OMP_WAIT_POLICY" not in os.environ:
            # By default a thread waits busily for some milliseconds. Beside other work, whose turn it then takes, steps
            # of 3 s took 50 s. So many rounds are enough where the cores are free, and little is lost where not.
            os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # of libgomp
            os.environ.setdefault("KMP_BLOCKTIME", "0")  # of Intel's and LLVM's
        self._run = run
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._running: dict[Connection, tuple[Path, BaseProcess]] = {}

    def warm(self) -> None:
        """Starts the server's imports now, before the first stage needs them."""
        forkserver.ensure_running()

    def start(self, folder: Path, workers: int, background: bool = False) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        child = self._context.Process(
            target=_child, args=(folder, workers, background, sender, self._run), name=folder.name
        )
        with _no_main() if self._run.__module__ != "__main__" else contextlib.nullcontext():
            child.start()
        sender.close()
        self._running[receiver] = (folder, child)

    def wait(self) -> Progress | Ended:
        found = self.wait_for(None)
        assert found
        return found

    def wait_for(self, seconds: float | None) -> Progress | Ended | None:
        """As `wait`, so many seconds at most; None if nothing happened."""
        ready = wait_for_any(list(self._running), seconds)
        if not ready:
            return None
        receiver = cast("Connection", ready[0])
        folder, child = self._running[receiver]
        error: Exception | None = None
        try:
            message = receiver.recv()
            if isinstance(message, Progress):
                return message
            error = message.error
        except EOFError:
            pass  # it died without a word
        child.join()
        receiver.close()
        del self._running[receiver]
        if error is None and child.exitcode != 0:
            error = StageCrashedError(_died(folder, child.exitcode or 0))
        return Ended(folder, error)

    def stop(self) -> None:
        for _, child in self._running.values():
            child.terminate()
        deadline = time.monotonic() + _PATIENCE
        for receiver, (_, child) in self._running.items():
            child.join(max(0.0, deadline - time.monotonic()))
            if child.is_alive():
                child.kill()
                child.join()
            receiver.close()
        self._running.clear()


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Within it, a process that starts does not import the script that runs here, which may have no guard around what
    it does."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _died(folder: Path, exitcode: int) -> str:
    how = f"was killed by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"ended with code {exitcode}"
    hint = " (out of memory?)" if exitcode == -signal.SIGKILL else ""
    return f"{folder.name} {how}{hint}; log: {folder / 'scratch' / 'log.txt'}. The same command goes on from there."


def _child(folder: Path, workers: int, background: bool, sender: Connection, run: Run) -> None:
    die_with_parent()
    one_thread_after_fork()  # sampling and scoring use processes; training asks for more threads where they pay
    if background:
        os.nice(19)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    log = Log((folder / "scratch" / "log.txt").open("ab"), encoding="utf-8", errors="replace", line_buffering=True)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log
    last = 0.0

    def progress(done: int, total: int, unit: str) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > 0.2:
            last = time.monotonic()
            sender.send(Progress(folder, done, total, unit))

    error: Exception | None = None
    try:
        run(folder, workers, progress)
    except Exception as raised:
        if not isinstance(raised, PosttrainError):
            with contextlib.suppress(OSError):  # the disk that the log is on may be full
                sys.stderr.write(redact(traceback.format_exc()))  # which is the log
        error = portable(retry.explained(raised, folder))
    with contextlib.suppress(BrokenPipeError):
        sender.send(Ended(folder, error))
    sender.close()
