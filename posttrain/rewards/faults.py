"""Translates faults of a reward's process into errors with file, line and hint."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from posttrain.data.messages import Message
from posttrain.errors import PosttrainError, RewardError, StageCrashedError, StageError
from posttrain.rewards import client, worker
from posttrain.rewards.source import line_of

_CRASHES = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL, -signal.SIGABRT}
_SHOWN = 300  # characters of a text that is not ours


def raised(file: str, function: str, error: client.Raised, given: Sequence[str]) -> RewardError:
    """The error for an exception at the file's import or in its function, SystemExit and the like included."""
    what = "importing the file" if error.importing else f"{function}()"
    said = f"{what} raised {error.kind}{f': {error.text[:_SHOWN]}' if error.text else ''}"
    if error.kind in ("SystemExit", "KeyboardInterrupt"):
        hint = "a reward returns its scores and does not end the process; raise an error of its own where it cannot"
        return RewardError(said, file=file, line=error.line, hint=hint, rule="reward-exit")
    if error.importing:
        missing = error.kind == "ModuleNotFoundError"
        hint = "a reward is one file; install what it imports, or put it into the file" if missing else None
        return RewardError(said, file=file, line=error.line, hint=hint, rule="reward-import")
    hint = f"it is called as {function}({'=…, '.join(given)}=…, and one list for each column)"
    return RewardError(said, file=file, line=error.line, hint=hint, rule="reward-raised")


def wrong(file: str, function: str, error: client.Wrong, rows: int) -> RewardError:
    """The error for a return value that is not one number or None per row."""
    where = {"file": file, "line": line_of(file, function)}
    hint = "one number for each completion, or None for no score"
    if error.kind == worker.NO_LIST:
        said = f"{function}() returned {error.texts[0]}, not a list"
        return RewardError(said, **where, hint=hint, rule="reward-no-list")
    if error.kind == worker.UNREADABLE:
        kind, raised, text = error.texts
        said = f"{function}() returned {kind}, which cannot be read as a list: it raised {raised}"
        said += f": {text[:_SHOWN]}" if text else ""
        return RewardError(said, **where, hint=hint, rule="reward-no-list")
    if error.kind == worker.LENGTH:
        said = f"{function}() returned {error.texts[0]} scores for {rows} rows"
        return RewardError(said, **where, hint=hint, rule="reward-length")
    row, score = error.texts
    said = f"{function}() returned {score[:_SHOWN]} for row {row}, which is no finite number"
    return RewardError(said, **where, hint=hint, rule="reward-number")


def ended(file: str, function: str, error: client.Ended) -> PosttrainError:
    """The error for a process that ended: a crash would repeat; after a kill from outside a retry may succeed."""
    what = "importing the file" if error.importing else f"{function}()"
    if error.code is not None and error.code >= 0:
        hint = "a reward returns its scores and does not end the process; raise an error of its own where it cannot"
        said = f"{what} ended its process with code {error.code}"
        return RewardError(said, file=file, line=error.line, hint=hint, rule="reward-exit")
    if error.code in _CRASHES:
        said = f"{what} crashed its process with {signal.Signals(-error.code).name}"
        hint = "native code that it calls is at fault; try it on the rows of this shard by itself"
        return RewardError(said, file=file, line=error.line, hint=hint, rule="reward-crash")
    how = "ended without a word" if error.code is None else f"was killed by {signal.Signals(-error.code).name}"
    memory = " (out of memory?)" if error.code in (None, -signal.SIGKILL) else ""
    return StageCrashedError(
        f"{_place(file, error.line)}: the process of {what} {how}{memory}; give it less to hold, or lower "
        "compute.workers. What was finished stays",
        rule="reward-killed",
    )


def overdue(
    file: str,
    function: str,
    late: client.Overdue,
    seconds: float,
    rows: int,
    hangs: tuple[int, Sequence[Message]] | None,
) -> StageError:
    """The error for a function that did not return. `hangs`: index and prompt of a row that hangs alone, or None."""
    what = f"{_place(file, late.line)}: {function}() did not return within {seconds:g} s for {rows} rows"
    if late.reading:
        what = (
            f"{_place(file, late.line)}: {function}() returned, and reading what it returned (its length, its items, "
            f"each as a number) did not end within {seconds:g} s for {rows} rows"
        )
    if hangs is None:
        what += ", though it does for each alone; raise compute.reward_minutes, or make it faster"
        return StageError(what, rule="reward-slow")
    row, prompt = hangs
    text = " ".join(str(prompt[-1]["content"]).split())
    what += f", and hangs on row {row}, the prompt {text[:80]!r}; mend it, or raise compute.reward_minutes"
    return StageError(what, rule="reward-hangs")


def import_overdue(file: str, late: client.Overdue) -> StageError:
    """The error for a file whose import does not end."""
    what = f"{_place(file, late.line)}: importing the file did not end within compute.reward_minutes, nor in a minute"
    return StageError(f"{what}; load within the function what takes long", rule="reward-import-hangs")


def _place(file: str, line: int | None) -> str:
    return file if line is None else f"{file}:{line}"
