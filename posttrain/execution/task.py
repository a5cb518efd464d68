"""A task of a cluster: a training, or a part of a stage's shards. How it ended is in a file, its marker, which the
command reads: schedulers forget."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import time
import traceback
from pathlib import Path

from posttrain.errors import EngineError, LostRankError, NearLimitError, PosttrainError, portable
from posttrain.execution import retry
from posttrain.execution.launcher import make_part, publish
from posttrain.storage.files import keep_first, write_durably
from posttrain.storage.part import Part
from posttrain.storage.redact import Log, redact
from posttrain.system import versions

PROGRESS = "progress.json"  # in scratch: done, total, unit
_TELLS = 1.0  # seconds between what a training says of its progress
NONCE, HELLO = "nonce", "hello-"  # files of `hello`


def artifact(folder: Path) -> Path:
    """What the training of the stage in `folder` publishes: that it has ended well."""
    return folder.parent.parent / "artifacts" / folder.name


def is_there(path: Path) -> bool:
    """Whether another machine has made this. NFS may say for half a minute that it is not there, unless its folder is
    listed anew."""
    return path.parent.is_dir() and path.name in os.listdir(path.parent)


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
            train(folder, workers)
    except NearLimitError:
        return False  # the job's script puts it back into the queue
    except LostRankError as lost:
        note(folder, lost)
        return False  # who was lost says why, or its absence does
    except Exception as raised:
        note(folder, raised)
        keep_first(target, pickle.dumps(portable(retry.explained(raised, folder))))
        return False
    if part:
        keep_first(target, pickle.dumps(None))
    return True


def note(folder: Path, error: Exception) -> None:
    """Writes the error with its traceback into the stage's log."""
    with Log((folder / "scratch" / "log.txt").open("ab"), encoding="utf-8", errors="replace") as log:
        log.write(redact("".join(traceback.format_exception(error))))


def train(folder: Path, workers: int) -> None:
    """Runs the training of the stage in `folder` and publishes its artifact. How far it is stands in a file."""
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


def hello(folder: Path, number: int) -> None:
    """Says what this machine, which has a number of its own, sees of the folder, and has of the libraries: what the
    command compares with its own."""
    if not folder.is_dir():
        return  # not shared: the command finds no answer
    read = (folder / NONCE).read_text("utf-8") if (folder / NONCE).is_file() else ""
    said = json.dumps({"nonce": read, "versions": versions(), "host": socket.gethostname()})
    write_durably(folder / f"{HELLO}{number}.json", said)


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
    """The error of a task, from its marker; None where it has none."""
    return pickle.loads(target.read_bytes())
