"""In every process of a run of `tests/support/faults.py`: writes down what it does, and kills it at a line of that.

Nothing of posttrain knows of this. What is written down: each opening for writing, rename, removal, folder and link in
the run's folder, as Python's audit events tell (before it happens), the start of each shard, and each training step.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

JOURNAL, ROOT = os.environ.get("FAULTS_JOURNAL", ""), os.environ.get("FAULTS_ROOT", "")
KILL_AT, LEADER_ALONE = int(os.environ.get("FAULTS_KILL_AT", "0")), bool(os.environ.get("FAULTS_LEADER_ALONE"))
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate"}
busy = False


def note(what: str) -> None:
    """A line in the journal; the line number `KILL_AT` is the last."""
    global busy
    if busy:
        return
    busy = True
    try:
        file = os.open(JOURNAL, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        fcntl.flock(file, fcntl.LOCK_EX)
        os.write(file, f"{what}\n".encode())
        lines = os.pread(file, 1 << 24, 0).count(b"\n")
        if lines == KILL_AT:
            leader = os.getpgid(0)
            if LEADER_ALONE:
                os.kill(leader, signal.SIGKILL)
            else:
                os.killpg(leader, signal.SIGKILL)
        os.close(file)
    finally:
        busy = False


def audited(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        path, _, flags = args
        changes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    else:
        path, changes = (args[0] if event in CHANGES else None), event in CHANGES
        if event in ("os.rename", "os.symlink"):
            path = args[1]
    if changes and isinstance(path, str | os.PathLike) and (name := os.fspath(path)).startswith(ROOT + os.sep):
        note(f"{event}\t{name[len(ROOT) + 1 :]}")


def after(module: str, patch: Callable[[Any], None]) -> None:
    """Have `patch` called once `module` was imported."""

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(
            self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
        ) -> importlib.machinery.ModuleSpec | None:
            if name != module:
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            assert spec and spec.loader
            loader: Any = spec.loader
            load = loader.exec_module

            def loaded(made: ModuleType) -> None:
                load(made)
                patch(made)

            loader.exec_module = loaded
            return spec

    sys.meta_path.insert(0, Finder())


def steps(run: Any) -> None:
    on_step_end = run.Watch.on_step_end

    def noted(self: Any, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        note(f"step\t{self.job.scratch.parent.name}\t{state.global_step}")
        on_step_end(self, args, state, *rest, **more)

    run.Watch.on_step_end = noted


def shards(module: Any) -> None:
    do = module._do

    @functools.wraps(do)  # it is sent to other processes by its name
    def noted(work: Any, shard: Any, pieces: Any, index: int) -> Any:
        note(f"shard\t{os.path.relpath(pieces.folder, ROOT)}/{module.name_of(index)}")
        return do(work, shard, pieces, index)

    module._do = noted


if JOURNAL:
    sys.addaudithook(audited)
    after("posttrain.training.run", steps)
    after("posttrain.storage.shards", shards)
