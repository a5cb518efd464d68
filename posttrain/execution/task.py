"""A task of a cluster: a training, or a part of a stage's shards. How it ended is in a file, its marker, which the
command reads: schedulers forget."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import socket
import time
from pathlib import Path
from typing import Any

from posttrain.errors import EngineError, NearLimitError, PosttrainError, StageCrashedError
from posttrain.execution import retry
from posttrain.execution.launcher import make_part, publish
from posttrain.storage.files import write_durably
from posttrain.storage.part import Part
from posttrain.system import versions

PROGRESS = "progress.json"  # in scratch: done, total, unit
_TELLS = 1.0  # seconds between what a training says of its progress
NONCE, HELLO = "nonce", "hello-"  # files of `hello`


def artifact(folder: Path) -> Path:
    """What the training of the stage in `folder` publishes: that it has ended well."""
    return folder.parent.parent / "artifacts" / folder.name


def marker(folder: Path, submission: str, index: int) -> Path:
    """Where a task says how it ended; a training says only why it failed."""
    return folder / "scratch" / "tasks" / submission / f"{index}.json"


def run(folder: Path, submission: str, part: Part | None, workers: int) -> bool:
    """Runs a task of the stage in `folder`; `part` None: its training, of which this may be one of several ranks.
    Returns whether it did all that it should."""
    index = part.index if part else 0
    target = marker(folder, submission, index)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if part:
            make_part(folder, part, workers)
        else:
            _train(folder, workers)
    except NearLimitError:
        return False  # the job's script puts it back into the queue
    except Exception as raised:
        error = retry.explained(raised, folder)
        _write_first(target, {"error": base64.b64encode(_pickled(error)).decode(), "said": str(error)})
        return False
    if part:
        _write_first(target, {"error": None})
    return True


def _train(folder: Path, workers: int) -> None:
    from posttrain.training.ranks import OtherRank

    told = 0.0

    def progress(done: int, total: int, unit: str) -> None:
        nonlocal told
        if done < total and time.monotonic() - told < _TELLS:
            return
        told = time.monotonic()
        part = folder / "scratch" / f".{PROGRESS}"
        part.write_text(json.dumps([done, total, unit]), "utf-8")
        part.rename(folder / "scratch" / PROGRESS)

    with contextlib.suppress(OtherRank):  # the first one publishes
        publish(folder, workers, progress)


def hello(folder: Path) -> None:
    """Says what this machine sees of the folder, and has of the libraries: what the command compares with its own."""
    read = (folder / NONCE).read_text("utf-8") if (folder / NONCE).is_file() else ""
    said = json.dumps({"nonce": read, "versions": versions(), "host": socket.gethostname()})
    write_durably(folder / f"{HELLO}{os.environ.get('SLURM_PROCID', '0')}.json", said)


def compare(folder: Path, wanted: int) -> None:
    """Compares what so many machines said of a folder, by `hello`.

    Raises:
        EngineError: they do not share it, or have other versions of the libraries.
    """
    nonce, own = (folder / NONCE).read_text("utf-8"), versions()
    answers = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(f"{HELLO}*.json"))]
    if len(answers) < wanted or any(answer["nonce"] != nonce for answer in answers):
        raise EngineError(
            f"{folder} is not what the machines of the cluster see there: put the run, and what it reads, on a file "
            "system that all of them share (`--run`)",
            rule="cluster-folder",
        )
    for answer in answers:
        other = {name: (one, answer["versions"].get(name)) for name, one in own.items()}
        found = [f"{name} {one} here and {its} there" for name, (one, its) in other.items() if one != its]
        if found:
            raise EngineError(
                f"{answer['host']} has other versions: {', '.join(found)}. Use one environment everywhere",
                rule="cluster-versions",
            )


def error_in(target: Path) -> PosttrainError | None:
    """The error of a task, from its marker."""
    said = json.loads(target.read_text("utf-8"))
    if said["error"] is None:
        return None
    try:
        return pickle.loads(base64.b64decode(said["error"]))
    except Exception:
        return StageCrashedError(said["said"])


def _pickled(error: BaseException) -> bytes:
    try:
        made = pickle.dumps(error)
        pickle.loads(made)
        return made
    except Exception:
        return pickle.dumps(StageCrashedError(str(error)))


def _write_first(target: Path, said: dict[str, Any]) -> None:
    """Of several ranks the one that failed first tells why: the others fail for want of it."""
    part = target.with_name(f".{target.name}.{os.getpid()}")
    write_durably(part, json.dumps(said))
    with contextlib.suppress(FileExistsError):
        os.link(part, target)
    part.unlink()
