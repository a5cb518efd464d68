"""Reads prompt and preference sets into records, from wherever `posttrain.data.sources` finds their rows.

Every row is checked here, so that later stages need not: a message names the file, the line and what
to do. A prompt that stands twice in a set is read once (a second copy would weigh double in training
and narrow intervals in evaluation); the copies are counted. A prompt with two different answers is an
error: one of them is wrong.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from posttrain.config import PromptSet
from posttrain.data import formats
from posttrain.data.json_values import as_json
from posttrain.data.messages import Labelled, Message, Preference, Prompt, under
from posttrain.data.pairs import Level
from posttrain.data.sources import Source, cut
from posttrain.data.text_lines import unreadable
from posttrain.errors import DataError, did_you_mean
from posttrain.storage.regular_files import open_regular

T = TypeVar("T")

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
    reading = _Reading(prompts, where, counts)
    source, made = reading.source, dict[str, Prompt]()
    names: set[str] | None = None
    first = 0
    for line, row, messages in reading.rows(formats.prompt_of, for_rewards=True):
        columns = {name: value for name, value in row.items() if name not in ("prompt", *formats.ANSWERS)}
        if names is None:
            names, first = set(columns), line
        elif set(columns) != names:
            _uneven(source, line, set(columns), names, first)
        prompt = Prompt(tuple(under(system, messages)), _as_json(source, line, columns), line)
        known = made.setdefault(prompt.id, prompt)
        if known is prompt:
            reading.take(line, prompt.messages, prompt.columns)
            continue
        if known.columns != prompt.columns:
            column = next(name for name in prompt.columns if prompt.columns[name] != known.columns[name])
            raise source.error(
                line,
                f"the same prompt as in {source.unit} {known.line}, with another {column!r}",
                f"take out the one that is wrong; or the column, by {where}.columns: {{{column}: null}}",
                rule="data-contradiction",
            )
        reading.counts["duplicate"] += 1
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
    reading, made = _Reading(real, where), []
    for line, _, (messages, answer) in reading.rows(formats.demonstration_of):
        made.append((Prompt(tuple(under(system, messages)), {}, line), answer))
        reading.take(line, messages, answer)
    if not made:
        raise reading.source.error(None, "no rows", rule="data-no-rows")
    return made


def read_preferences(
    given: PromptSet, system: str | None = None, *, where: str = "preferences.given", counts: Counter[str] | None = None
) -> list[Preference]:
    """The ranked answers of a set, in its order: `chosen`, `rejected`, and where there are any `edited` and `level`.

    Useless rows are dropped, and `counts` grows by one for each: `identical`, if chosen and rejected are the same,
    `empty`, if the better answer is empty, `duplicate`. `system`, `where` as above.

    Raises DataError for whatever cannot be used, at its line.
    """
    reading = _Reading(given, where, counts)
    source, made, left_out = reading.source, dict[str, Preference](), reading.counts
    for line, row, (messages, answers, level) in reading.rows(_ranking_with_level):
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
            reading.take(line, identity, messages, answers, columns)
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
    reading = _Reading(given, where, counts)
    source, made = reading.source, dict[str, Labelled]()
    for line, _, (messages, answer, label) in reading.rows(formats.labelled_of):
        identity = json.dumps([messages, answer, label])
        if identity in made:
            reading.counts["duplicate"] += 1
        else:
            reading.take(line, identity, messages, answer)
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
    digest, source = hashlib.sha256(), Source(prompts, "prompts")
    if prompts.path is not None:
        try:
            with open_regular(source.path) as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise unreadable(source.path, error) from None
        digest.update(source.path.suffix.encode())
    else:
        for _, row in source.rows():
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    how = [prompts.columns, prompts.rows, system]
    digest.update(json.dumps(how, sort_keys=True).encode())
    return digest.hexdigest()


def _ranking_with_level(row: Mapping[str, Any]) -> tuple[list[Message], dict[str, list[Message] | None], str | None]:
    level, known = row.get("level"), get_args(Level)
    if level is not None and level not in known:
        message = f"no level is called {level!r}{did_you_mean(str(level), known)}"
        raise DataError(message, hint=", ".join(known), rule="data-level")
    return *formats.ranking_of(row), level


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


class _Reading:
    """The reading of a set: its rows, how many were left out and why, and the memory that it takes, which all is in
    memory once it is read."""

    def __init__(self, given: PromptSet, where: str, counts: Counter[str] | None = None) -> None:
        self.source = Source(given, where)
        self.counts = Counter[str]() if counts is None else counts
        self._taken = 0

    def rows(
        self, parse: Callable[[Mapping[str, Any]], T], *, for_rewards: bool = False
    ) -> Iterator[tuple[int, dict[str, Any], T]]:
        """Of each row its line, its columns under our names, and what `parse` makes of them."""
        for line, raw in cut(self.source.rows(), self.source.prompts.rows):
            row = self.source.rename(line, raw, for_rewards=for_rewards)
            try:
                parsed = parse(row)
            except DataError as error:
                raise self.source.error(line, error.message, error.hint, rule=error.rule or "data-form") from None
            yield line, row, parsed

    def take(self, line: int, *values: Any) -> None:
        self._taken += _memory(values)
        if self._taken > MOST_SET:
            message = f"the set takes more than {MOST_SET / 1e9:g} GB of memory up to here"
            hint = f"read a part of it, by {self.source.where}.rows: ':{line - 1}', or leave columns out by `columns`"
            raise self.source.error(line, message, hint, rule="data-set-size")


def _memory(value: Any) -> int:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return sys.getsizeof(value) + sum(map(_memory, parts))


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
