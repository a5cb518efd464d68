"""The exceptions, and the exit code of each.

PosttrainError                 1   the base class
├── InputError                 2   wrong input; nothing was started
│   ├── RecipeError            2   a key, type or value of a recipe
│   ├── DataError              2   a prompt, demonstration or preference file
│   ├── ModelError             2   a model folder, its tokenizer or chat template
│   └── RewardError            2   a reward file, or what one of its functions returned
├── StageError                 3   a stage failed or crashed
│   ├── EmptyStageError        3   a stage had no rows left (no pair, no kept sample)
│   ├── EngineError            3   an inference engine or judge is down or serves other weights
│   ├── StageCrashedError      3   a process was killed, or memory or a device failed: the stage is retried
│   │   └── LostRankError      3   within a training: another of its processes ended
│   ├── NearLimitError         3   within a cluster: a job's time is nearly up
│   ├── NonFiniteError         3   a loss, gradient or weight is not finite
│   └── ResourceError          3   disk or memory is too small
├── MissingShardsError         1   within a cluster: shards are missing that other tasks make
├── LockedError                4   another process is using this run
├── DamagedError               5   a file of the run does not match its manifest
└── HubError                   6   the Hub refused or could not be reached; the run is unchanged
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self


class PosttrainError(Exception):
    """One message for the user: what is wrong, where, and what to do.

    `rule` names the check that refused, as docs/failures.md lists it; it stands in brackets after the message.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, rule: str | None = None) -> None:
        self.rule = rule
        first, newline, rest = message.partition("\n")
        super().__init__(f"{first} [{rule}]{newline}{rest}" if rule else message)


class InputError(PosttrainError):
    """Wrong input. Raised before anything of the run is changed.

    `file`, `line` and `column` (both counted from 1) say where; `hint` says what to do.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        column: int | None = None,
        hint: str | None = None,
        rule: str | None = None,
    ) -> None:
        self.message, self.file, self.line, self.column, self.hint = message, file, line, column, hint
        where = ":".join(str(part) for part in (file, line, column) if part is not None)
        text = f"{where}: {message}" if where else message
        super().__init__(f"{text}\n  {hint}" if hint else text, rule=rule)

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("message", "file", "line", "column", "hint", "rule")}

    def replaced(self, **changes: Any) -> Self:
        """The same error with some fields changed, such as the message or the place."""
        return type(self)(**self._fields() | changes)

    def __reduce__(self) -> tuple[Any, ...]:  # keyword-only arguments do not survive pickling by default
        return functools.partial(type(self), **self._fields()), ()


@contextlib.contextmanager
def in_file(file: Path | str) -> Iterator[None]:
    """Adds the file to an input error that does not name one."""
    try:
        yield
    except InputError as error:
        if error.file is not None:
            raise
        raise error.replaced(file=str(file)) from error


class RecipeError(InputError):
    """A key, type or value of a recipe."""


class DataError(InputError):
    """A prompt, demonstration or preference file."""


class ModelError(InputError):
    """A model folder, its tokenizer or its chat template."""


class RewardError(InputError):
    """A reward file, or what one of its functions returned."""


class StageError(PosttrainError):
    """A stage failed or crashed; finished stages are intact."""

    exit_code = 3


class EmptyStageError(StageError):
    """A stage had no rows left; the message names what dropped them."""


class EngineError(StageError):
    """The inference engine or a judge is not installed, is down, serves other weights, or fails."""


class StageCrashedError(StageError):
    """The process of a stage was killed, or memory or a device failed. A retry may succeed."""


class LostRankError(StageCrashedError):
    """Another process of the training ended, which this one found out by waiting for it: not the cause."""


class NonFiniteError(StageError):
    """A loss, gradient or weight is not finite. `step`: optimizer step at which it was found, None if unknown."""

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class NearLimitError(StageError):
    """A training stopped behind a checkpoint, since its job's time is nearly up: the same job goes on from there."""


class ResourceError(StageError):
    """Disk or memory is too small, or the disk is full. Finished stages stay."""


class MissingShardsError(PosttrainError):
    """A stage's shards that other processes make are not there yet. `count`: how many."""

    def __init__(self, message: str, count: int = 0) -> None:
        super().__init__(message)
        self.count = count


class LockedError(PosttrainError):
    """Another process is using this run."""

    exit_code = 4


class DamagedError(PosttrainError):
    """A file of the run does not match its manifest."""

    exit_code = 5


class HubError(PosttrainError):
    """The Hub refused, or could not be reached. The run is unchanged; the same command resumes."""

    exit_code = 6


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the nearest known name; empty when none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""


def portable(error: Exception) -> Exception:
    """The exception itself where another process can read it, else its words as a StageError."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return StageError(f"{type(error).__name__}: {error}")
    return error
