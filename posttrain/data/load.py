"""Reads prompt and preference sets into records, from wherever `posttrain.data.sources` finds their rows.

Every row is checked here, so that later stages need not: a message names the file, the line and what
to do. A prompt that stands twice in a set is read once (a second copy would weigh double in training
and narrow intervals in evaluation); the copies are counted. A prompt with two different answers is an
error: one of them is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

from posttrain.config import PromptSet
from posttrain.data import formats
from posttrain.data.json_values import as_json
from posttrain.data.messages import Labelled, Message, Preference, Prompt, under
from posttrain.data.pairs import Level
from posttrain.data.sources import Source, cut
from posttrain.errors import DataError, did_you_mean
from posttrain.storage.regular_files import open_regular

MOST_SET = 1_500_000_000  # bytes of memory


def read_prompts(
    prompts: PromptSet, system: str | None = None, *, where: str = "prompts.train", counts: Counter[str] | None = None
) -> list[Prompt]:
    """The prompts of a set, in its order, out of any format that `posttrain.data.formats` knows.

    All columns that hold neither the prompt nor answers go with it for the rewards. `system` is put before prompts
    without a system message of their own. CSV values are strings, empty ones null. `counts["duplicate"]` grows by one
    for each copy that was left out. `where` is the recipe's key, for messages.

    Raises DataError for whatever cannot be used, at its line.
    """
    source = Source(prompts, where)
    made: dict[str, Prompt] = {}
    copies: Counter[str] = Counter() if counts is None else counts
    room = _Room(source)
    names: set[str] | None = None
    first = 0
    for line, raw in cut(source.rows(), prompts.rows):
        row = source.rename(line, raw, for_rewards=True)
        columns = {name: value for name, value in row.items() if name not in ("prompt", *formats.ANSWERS)}
        if names is None:
            names, first = set(columns), line
        elif set(columns) != names:
            _uneven(source, line, set(columns), names, first)
        with _at(source, line):
            messages = formats.prompt_of(row)
        prompt = Prompt(tuple(under(system, messages)), _as_json(source, line, columns), line)
        known = made.setdefault(prompt.id, prompt)
        if known is prompt:
            room.take(line, prompt.messages, prompt.columns)
            continue
        if known.columns != prompt.columns:
            column = next(name for name in prompt.columns if prompt.columns[name] != known.columns[name])
            raise source.error(
                line,
                f"the same prompt as in {source.unit} {known.line}, with another {column!r}",
                f"take out the one that is wrong; or the column, by {where}.columns: {{{column}: null}}",
                rule="data-contradiction",
            )
        copies["duplicate"] += 1
    if not made:
        message = "no rows" if prompts.rows is None else f"no rows are left by rows: {prompts.rows}"
        raise source.error(None, message, rule="data-no-rows")
    return list(made.values())


def read_demonstrations(
    real: PromptSet, system: str | None = None, *, where: str = "prompts.real"
) -> list[tuple[Prompt, list[Message]]]:
    """The prompts of a set with their answers, in its order. `system`, `where` as above.

    Raises DataError for whatever cannot be used, at its line.
    """
    source = Source(real, where)
    made, room = [], _Room(source)
    for line, raw in cut(source.rows(), real.rows):
        row = source.rename(line, raw)
        with _at(source, line):
            messages, answer = formats.demonstration_of(row)
        made.append((Prompt(tuple(under(system, messages)), {}, line), answer))
        room.take(line, messages, answer)
    if not made:
        raise source.error(None, "no rows", rule="data-no-rows")
    return made


def read_preferences(
    given: PromptSet, system: str | None = None, *, where: str = "preferences.given", counts: Counter[str] | None = None
) -> list[Preference]:
    """The ranked answers of a set, in its order: `chosen`, `rejected`, and where there are any `edited` and `level`.

    Useless rows are dropped, and `counts` grows by one for each: `identical`, if chosen and rejected are the same,
    `empty`, if the better answer is empty, `duplicate`. `system`, `where` as above.

    Raises DataError for whatever cannot be used, at its line.
    """
    source = Source(given, where)
    made: dict[str, Preference] = {}
    left_out: Counter[str] = Counter() if counts is None else counts
    room = _Room(source)
    for line, raw in cut(source.rows(), given.rows):
        row = source.rename(line, raw)
        with _at(source, line):
            messages, answers = formats.ranking_of(row)
            level = _level(row.get("level"))
        read = ("prompt", "level", *formats.ANSWERS)
        columns = _as_json(source, line, {name: value for name, value in row.items() if name not in read})
        best = answers["edited"] or answers["chosen"] or []
        identity = json.dumps([messages, answers])
        if answers["chosen"] == answers["rejected"]:
            left_out["identical"] += 1
        elif not best[-1]["content"].strip():
            left_out["empty"] += 1
        elif identity in made:
            left_out["duplicate"] += 1
        else:
            room.take(line, identity, messages, answers, columns)
            prompt = Prompt(tuple(under(system, messages)), columns, line)
            sides = {name: None if turns is None else tuple(turns) for name, turns in answers.items()}
            made[identity] = Preference(prompt, sides["chosen"] or (), sides["rejected"] or (), sides["edited"], level)
    if not made:
        message = f"no pair is left{f': {dict(left_out)}' if left_out else ''}"
        raise source.error(None, message, rule="data-no-rows")
    return list(made.values())


def read_labelled(
    given: PromptSet, system: str | None = None, *, where: str, counts: Counter[str] | None = None
) -> list[Labelled]:
    """The answers of a set with labels good or bad, in its order. Identical rows are read once, and
    `counts["duplicate"]` grows by one for each; labels may disagree. `system`, `where` as above.

    Raises DataError for whatever cannot be used, at its line, and where all labels are alike.
    """
    source = Source(given, where)
    made: dict[str, Labelled] = {}
    left_out: Counter[str] = Counter() if counts is None else counts
    room = _Room(source)
    for line, raw in cut(source.rows(), given.rows):
        row = source.rename(line, raw)
        with _at(source, line):
            messages, answer, label = formats.labelled_of(row)
        identity = json.dumps([messages, answer, label])
        if identity in made:
            left_out["duplicate"] += 1
        else:
            room.take(line, identity, messages, answer)
            made[identity] = Labelled(Prompt(tuple(under(system, messages)), {}, line), tuple(answer), label)
    if not made:
        raise source.error(None, "no rows", rule="data-no-rows")
    rows = list(made.values())
    if len({row.label for row in rows}) == 1:
        message = f"all labels of the set are {str(rows[0].label).lower()} (rows: {len(rows)})"
        hint = "what is good is learned beside what is bad: a set needs answers of both kinds"
        raise source.error(rows[0].prompt.line, message, hint, rule="data-labels-alike")
    return rows


# How the sets are read that sections of a recipe name as `given`, by what they hold. Each is checked as it is read.
GIVEN: dict[str, Callable[..., Sequence[Any]]] = {"preferences": read_preferences, "labelled": read_labelled}


def content_hash(prompts: PromptSet, system: str | None = None) -> str:
    """SHA-256 of everything that decides the rows of a set: the file or the Hub's rows, and the options of the set."""
    digest = hashlib.sha256()
    if prompts.path is not None:
        source = Source(prompts, "prompts")
        try:
            with open_regular(source.path) as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise source.error(None, f"cannot be read: {error.strerror}", rule="data-unreadable") from None
        digest.update(source.path.suffix.encode())
    else:
        for _, row in Source(prompts, "prompts").rows():
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    how = [prompts.columns, prompts.rows, system]
    digest.update(json.dumps(how, sort_keys=True).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _at(source: Source, line: int) -> Iterator[None]:
    """Says at which line of which file it was."""
    try:
        yield
    except DataError as error:
        raise source.error(line, error.message, error.hint, rule=error.rule or "data-form") from None


def _level(given: Any) -> str | None:
    if given is not None and given not in get_args(Level):
        known = get_args(Level)
        message = f"no level is called {given!r}{did_you_mean(str(given), known)}"
        raise DataError(message, hint=", ".join(known), rule="data-level")
    return given


def _as_json(source: Source, line: int, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Columns as JSON has them: what is handed to rewards."""
    made = {}
    for name, value in columns.items():
        try:
            made[name] = as_json(value)
        except (TypeError, RecursionError) as error:
            message = f"the column {name!r} has no form in JSON: {error}"
            hint = f"leave it out by {source.where}.columns: {{{name}: null}}"
            raise source.error(line, message, hint, rule="data-value") from None
    return made


class _Room:
    """Counts the memory that a set takes, which all is in memory once it is read."""

    def __init__(self, source: Source) -> None:
        self._source, self._taken = source, 0

    def take(self, line: int, *values: Any) -> None:
        self._taken += _memory(values)
        if self._taken > MOST_SET:
            message = f"the set takes more than {MOST_SET / 1e9:g} GB of memory up to here"
            hint = f"read a part of it, by {self._source.where}.rows: ':{line - 1}', or leave columns out by `columns`"
            raise self._source.error(line, message, hint, rule="data-set-size")


def _memory(value: Any) -> int:
    size = sys.getsizeof(value)
    if isinstance(value, Mapping):
        return size + sum(map(_memory, value.values()))
    if isinstance(value, (list, tuple)):
        return size + sum(map(_memory, value))
    return size


def _uneven(source: Source, line: int, names: set[str], usual: set[str], first: int) -> None:
    for name in sorted(usual - names):
        near = did_you_mean(name, names - usual).replace("did you mean", "but there is")
        hint = "write null where a row has no value"
        message = f"no column {name!r}, which {source.unit} {first} has{near}"
        raise source.error(line, message, hint, rule="data-uneven-columns")
    name = min(names - usual)
    hint = f"write null in {source.unit} {first} and wherever a row has no value"
    message = f"a column {name!r}, which {source.unit} {first} has not"
    raise source.error(line, message, hint, rule="data-uneven-columns")
