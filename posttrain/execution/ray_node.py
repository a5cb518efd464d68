"""What runs on the nodes of a Ray cluster: see posttrain.execution.ray.

Work is done in processes of its own, forked from a server with the libraries imported that each of Ray's workers keeps.
Those that make parts of a stage's shards stay for the next part, so that the model is loaded once.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from posttrain.errors import StageCrashedError
from posttrain.execution import task
from posttrain.execution.launcher import Ended, Forked, make_part
from posttrain.storage.part import Part

_RETRIES = 3  # of a training over several nodes that loses one; Ray's own number for tasks
_NEXT = 3.0  # seconds that a process waits for another part; longer, and its memory would be in the next stage's way

Progress = Callable[[int, int, str], None]


def line(error: BaseException, number: int) -> str:
    """A line of what Ray says: of an exception in a task the last one is it, of a lost node the first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[number][:500]


def hello(folder: str, number: int) -> None:
    """Says which versions this node has. Its libraries are imported meanwhile."""
    task.hello(Path(folder), number)
    Forked().warm()


def work(folder: str, part: Part | None, workers: int) -> Exception | None:
    """A part of a stage's shards, or all of a stage. Returns its error."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")  # those that Ray gave this task; the server has what it began with
    if part is None:
        return _ended(Path(folder), workers, functools.partial(_whole, devices=devices))
    return _Maker.of(Path(folder), workers, devices).make(part)


def _ended(folder: Path, workers: int, run: Callable[[Path, int, Progress], None]) -> Exception | None:
    launcher = Forked(run)
    launcher.start(folder, workers)
    return _error(launcher)


def _error(launcher: Forked) -> Exception | None:
    while True:
        news = launcher.wait()
        if isinstance(news, Ended):
            return news.error


def _use(devices: str | None) -> None:
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices


def _whole(folder: Path, workers: int, progress: Progress, *, devices: str | None) -> None:
    _use(devices)
    if not task.is_there(task.artifact(folder)):  # its node was lost once it had published
        task.train(folder, workers)


class _Maker:
    """A process that makes parts of a stage's shards, one after the other, as long as the next one comes soon."""

    _last: _Maker | None = None

    def __init__(self, folder: Path, workers: int, devices: str | None) -> None:
        self.makes = folder, workers, devices
        self._begin()

    @classmethod
    def of(cls, folder: Path, workers: int, devices: str | None) -> _Maker:
        """The one that this worker of Ray has, if it is of this stage; else a new one."""
        if cls._last is None or cls._last.makes != (folder, workers, devices):
            cls._last = cls(folder, workers, devices)
        return cls._last

    def _begin(self) -> None:
        folder, workers, devices = self.makes
        self._pipe, theirs = multiprocessing.get_context("forkserver").Pipe()
        self._launcher = Forked(functools.partial(_make_parts, parts=theirs, devices=devices))
        self._launcher.start(folder, workers)
        theirs.close()

    def make(self, part: Part) -> Exception | None:
        """Returns the error of the part."""
        while True:
            try:
                self._pipe.send(part)
                self._pipe.recv()
                return None
            except (EOFError, OSError):  # it failed, or had stopped waiting
                error = _error(self._launcher)
                self._pipe.close()
                if error:
                    type(self)._last = None
                    return error
                self._begin()


def _make_parts(folder: Path, workers: int, progress: Progress, *, parts: Connection, devices: str | None) -> None:
    _use(devices)
    while parts.poll(_NEXT):
        try:
            part = parts.recv()
        except EOFError:
            return
        make_part(folder, part, workers)
        parts.send(None)


def train_over_nodes(folder: str, name: str, processes: int, need: Mapping[str, float]) -> Exception | None:
    """A training by Ray Train, a rank for each process. Returns its error."""
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = need["GPU"] > 0
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"folder": folder, "name": name},
        torch_config=TorchConfig(backend="cuda:nccl,cpu:gloo" if gpus else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=processes,
            use_gpu=gpus,
            resources_per_worker={what: amount for what, amount in need.items() if amount},
        ),
        run_config=train.RunConfig(
            name="ray",
            storage_path=str(Path(folder) / "scratch"),
            failure_config=train.FailureConfig(max_failures=_RETRIES),
        ),
    )
    marker = task.marker(Path(folder), name, 0)
    try:
        trainer.fit()
    except Exception as error:
        if not task.is_there(marker):
            return StageCrashedError(f"Ray Train gave up: {line(error, 0)}; log of its workers: Ray's")
    return task.error_in(marker) if task.is_there(marker) else None


def _rank(given: Mapping[str, str]) -> None:
    """A rank of a training. One that is lost makes Ray Train begin all of them again; they resume at a checkpoint."""
    import posttrain.execution.preload  # noqa: F401 - what it sets for torch

    folder, name = Path(given["folder"]), given["name"]
    if task.is_there(task.marker(folder, name, 0)) or task.is_there(task.artifact(folder)):
        return
    if not task.run(folder, name, None, 1):
        raise RuntimeError("a rank failed, see its log")  # Ray Train ends the others, which may wait for this one
