"""Retries: why a stage failed, whether it is run again, and how.

Retried is what need not happen twice: a process that was killed, failed memory or a failed device, a loss that is not
finite. Wrong input, an empty stage, a full disk and a bug of ours fail the same way again.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any, Literal

from posttrain.errors import NonFiniteError, PosttrainError, ResourceError, StageCrashedError, StageError
from posttrain.storage.files import write_durably
from posttrain.storage.redact import redact

How = Literal["same", "halved"]
IN_WORDS: Mapping[How, str] = {
    "same": "is tried again as it was",
    "halved": "is tried again with micro-batches and processes half as large",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
# How libraries say so in a text: safetensors and Arrow by errno's name, torch by what its writer of archives finds.
_FULL_SAID = (
    "No space left on device",
    "Disk quota exceeded",
    "PytorchStreamWriter failed writing",
    ". unexpected pos ",
)
_PASSING = (errno.EIO, errno.ENOMEM, errno.ESTALE)  # of a disk on the network, or of memory
_RAN_OUT = ("OutOfMemoryError", "AcceleratorError", "MemoryError")  # torch's by name: it is not imported for this


def next_try(failures: Sequence[Exception], attempts: int) -> How | None:
    """How a stage with these failures in this command is retried; None: it is not.

    A loss that is not finite twice at the same optimizer step is not retried.
    """
    last = failures[-1]
    if len(failures) >= attempts or not isinstance(last, StageCrashedError | NonFiniteError):
        return None
    steps = [error.step for error in failures if isinstance(error, NonFiniteError)]
    if isinstance(last, NonFiniteError) and last.step in steps[:-1]:
        return None
    return "same" if len(failures) == 1 else "halved"


def processes(workers: int, failures: int) -> int:
    """The processes of a stage after `failures` failures: halved with each after the first."""
    return max(1, workers >> max(0, failures - 1))


def halve(folder: Path, stage: Mapping[str, Any]) -> None:
    """Halves the micro-batch of a training; an optimizer step still learns from the same rows."""
    section = stage["runtime"].get(stage["stage"], {})
    batch = section.get("per_device_train_batch_size") if isinstance(section, Mapping) else None
    if batch is None:
        return
    fitted = folder / "scratch" / "micro_batch.json"  # see posttrain.training.run.train
    now = json.loads(fitted.read_text("utf-8")) if fitted.exists() else stage["runtime"].get("micro_batch", batch)
    write_durably(fitted, json.dumps(max(1, now // 2)))


def note(folder: Path, error: Exception, seconds: float, how: How | None) -> None:
    """Records a failed attempt and what follows, for the artifact's manifest and in the stage's log."""
    then, said = IN_WORDS[how] if how else "is not tried again", redact(str(error))
    made = {"error": type(error).__name__, "message": said, "seconds": round(seconds, 3), "then": then}
    write_durably(_record(folder), json.dumps([*failed_before(folder), made], ensure_ascii=False))
    with (folder / "scratch" / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"{said}\n{folder.name} {then}\n")


def failed_before(folder: Path) -> list[dict[str, Any]]:
    """The recorded failed attempts of a stage, of this command and earlier ones."""
    try:
        return json.loads(_record(folder).read_text("utf-8"))
    except (OSError, ValueError):
        return []


def _record(folder: Path) -> Path:
    return folder / "scratch" / "attempts.json"


def explained(error: Exception, folder: Path) -> PosttrainError:
    """The exception of a stage in `folder` as a PosttrainError."""
    stage = folder.name.rpartition("-")[0]
    chain = list(_chain(error))
    full = max(filter(is_full, chain), key=lambda one: getattr(one, "filename", None) is not None, default=None)
    if full is not None:
        return full_disk(full, folder.parent.parent, stage)
    if isinstance(error, PosttrainError):
        return error
    log = f"log: {folder / 'scratch' / 'log.txt'}"
    what = redact(f"{type(error).__name__}: {error}")
    if any(map(_passing, chain)):
        return StageCrashedError(f"{stage} died: {what}; {log}. The same command goes on from there.")
    return StageError(f"{stage} failed: {what}; {log}. The same command goes on from the last finished stage.")


def full_disk(error: BaseException, root: Path, stage: str = "") -> ResourceError:
    """The error for a full disk: which file, how much is free, and the size of artifacts and work."""
    path = getattr(error, "filename", None) or root
    free, work = shutil.disk_usage(root).free, _size(root / "work")
    return ResourceError(
        f"{f'{stage}: ' if stage else ''}the disk is full: {path} could not be written. {free:,} bytes are free at "
        f"{root}, where artifacts take {_size(root / 'artifacts'):,} and work under way {work:,}. Nothing partial was "
        "published. Make room there (older runs, the cache of the Hub), and the same command goes on"
    )


def is_full(error: BaseException) -> bool:
    """Whether this exception means that the disk is full; libraries report that in several ways."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(said in str(error) for said in _FULL_SAID)


def _passing(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _PASSING:
        return True
    known = isinstance(error, BrokenExecutor) or type(error).__name__ in _RAN_OUT
    return known or any(said in str(error) for said in ("CUDA error", "can't allocate memory"))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, and its causes and contexts."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
