"""Reads prompt and preference sets into records, from wherever `posttrain.sources` finds their rows.

Every row is checked here, so that later stages need not: a message names the file, the line and what
to do. A prompt that stands twice in a set is read once (a second copy would weigh double in training
and narrow intervals in evaluation); the copies are counted. A prompt with two different answers is an
error: one of them is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from posttrain import formats
from posttrain.content import did_you_mean
from posttrain.errors import DataError
from posttrain.pairing import Level
from posttrain.recipe import PromptSet
from posttrain.records import Message, Preference, Prompt, under
from posttrain.sources import Source, cut


def read_prompts(
    prompts: PromptSet, system: str | None = None, *, where: str = "prompts.train", counts: Counter[str] | None = None
) -> list[Prompt]:
    """The prompts of a set, in its order, out of any format that `posttrain.formats` knows.

    All columns that hold neither the prompt nor answers go with it for the rewards. `system` is put before prompts
    without a system message of their own. CSV values are strings, empty ones null. `counts["duplicate"]` grows by one
    for each copy that was left out. `where` is the recipe's key, for messages.

    Raises DataError for whatever cannot be used, at its line.
    """
    source = Source(prompts, where)
    made: dict[str, Prompt] = {}
    copies: Counter[str] = Counter() if counts is None else counts
    names: set[str] | None = None
    first = 0
    for line, raw in cut(list(source.rows()), prompts.rows):
        row = source.rename(line, raw, for_rewards=True)
        columns = {name: value for name, value in row.items() if name not in ("prompt", *formats.ANSWERS)}
        if names is None:
            names, first = set(columns), line
        elif set(columns) != names:
            _uneven(source, line, set(columns), names, first)
        with _at(source, line):
            messages = formats.prompt_of(row)
        prompt = Prompt(tuple(under(system, messages)), _as_json(columns), line)
        known = made.setdefault(prompt.id, prompt)
        if known is prompt:
            continue
        if known.columns != prompt.columns:
            column = next(name for name in prompt.columns if prompt.columns[name] != known.columns[name])
            raise source.error(
                line,
                f"the same prompt as in {source.unit} {known.line}, with another {column!r}",
                f"take out the one that is wrong; or the column, by {where}.columns: {{{column}: null}}",
            )
        copies["duplicate"] += 1
    if not made:
        raise source.error(None, "no rows" if prompts.rows is None else f"no rows are left by rows: {prompts.rows}")
    return list(made.values())


def read_demonstrations(
    real: PromptSet, system: str | None = None, *, where: str = "prompts.real"
) -> list[tuple[Prompt, list[Message]]]:
    """The prompts of a set with what somebody answered, in its order. `system`, `where` as above.

    Raises DataError for whatever cannot be used, at its line.
    """
    source = Source(real, where)
    made = []
    for line, raw in cut(list(source.rows()), real.rows):
        row = source.rename(line, raw)
        with _at(source, line):
            messages, answer = formats.demonstration_of(row)
        made.append((Prompt(tuple(under(system, messages)), {}, line), answer))
    if not made:
        raise source.error(None, "no rows")
    return made


def read_preferences(
    given: PromptSet, system: str | None = None, *, where: str = "preferences.given", counts: Counter[str] | None = None
) -> list[Preference]:
    """The ranked answers of a set, in its order: `chosen`, `rejected`, and where there are any `edited` and `level`.

    Rows that nothing can be learned from are left out, and `counts` grows by one for each: `identical`, where chosen
    and rejected are the same, `empty`, where the better answer is empty, `duplicate`. `system`, `where` as above.

    Raises DataError for whatever cannot be used, at its line.
    """
    source = Source(given, where)
    made: dict[str, Preference] = {}
    left_out: Counter[str] = Counter() if counts is None else counts
    for line, raw in cut(list(source.rows()), given.rows):
        row = source.rename(line, raw)
        with _at(source, line):
            messages, answers = formats.ranking_of(row)
            level = _level(row.get("level"))
        read = ("prompt", "level", *formats.ANSWERS)
        columns = _as_json({name: value for name, value in row.items() if name not in read})
        best = answers["edited"] or answers["chosen"] or []
        identity = json.dumps([messages, answers])
        if answers["chosen"] == answers["rejected"]:
            left_out["identical"] += 1
        elif not best[-1]["content"].strip():
            left_out["empty"] += 1
        elif identity in made:
            left_out["duplicate"] += 1
        else:
            prompt = Prompt(tuple(under(system, messages)), columns, line)
            sides = {name: None if turns is None else tuple(turns) for name, turns in answers.items()}
            made[identity] = Preference(prompt, sides["chosen"] or (), sides["rejected"] or (), sides["edited"], level)
    if not made:
        raise source.error(None, f"no pair is left{f': {dict(left_out)}' if left_out else ''}")
    return list(made.values())


def content_hash(prompts: PromptSet, system: str | None = None) -> str:
    """SHA-256 of all that decides what is read of a set: the file, or the Hub's rows, and what is done to them."""
    digest = hashlib.sha256()
    if prompts.path is not None:
        source = Source(prompts, "prompts")
        try:
            with source.path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise source.error(None, f"cannot be read: {error.strerror}") from None
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
        raise source.error(line, error.message, error.hint) from None


def _level(given: Any) -> str | None:
    if given is not None and given not in get_args(Level):
        known = get_args(Level)
        raise DataError(f"no level is called {given!r}{did_you_mean(str(given), known)}", hint=", ".join(known))
    return given


def _as_json(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Columns as they will come back from JSON (a date becomes text)."""
    return json.loads(json.dumps(dict(columns), default=str))


def _uneven(source: Source, line: int, names: set[str], usual: set[str], first: int) -> None:
    for name in sorted(usual - names):
        near = did_you_mean(name, names - usual).replace("did you mean", "but there is")
        hint = "write null where a row has no value"
        raise source.error(line, f"no column {name!r}, which {source.unit} {first} has{near}", hint)
    name = min(names - usual)
    hint = f"write null in {source.unit} {first} and wherever a row has no value"
    raise source.error(line, f"a column {name!r}, which {source.unit} {first} has not", hint)
