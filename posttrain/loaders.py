"""Reads prompt sets into records, from wherever `posttrain.sources` finds their rows.

Every row is checked here, so that later stages need not: a message names the file, the line and what
to do. A prompt that stands twice in a set is read once (a second copy would weigh double in training
and narrow intervals in evaluation); the copies are counted. A prompt with two different answers is an
error: one of them is wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from posttrain.content import did_you_mean
from posttrain.recipe import PromptSet
from posttrain.records import Message, Prompt, under
from posttrain.sources import Source, cut, kind

ROLES = ("system", "user", "assistant")


def read_prompts(
    prompts: PromptSet, system: str | None = None, *, where: str = "prompts.train", counts: Counter[str] | None = None
) -> list[Prompt]:
    """The prompts of a set, in its order.

    `prompt` is text (one user message) or a list of messages that ends with the user's; all other
    columns go with it for the rewards. `system` is put before prompts without a system message of
    their own. CSV values are strings, empty ones null. `counts["duplicate"]` grows by one for each
    copy that was left out. `where` is the recipe's key, for messages.

    Raises DataError for whatever cannot be used, at its line.
    """
    source = Source(prompts, where)
    made: dict[str, Prompt] = {}
    copies: Counter[str] = Counter() if counts is None else counts
    names: set[str] | None = None
    first = 0
    for line, row in cut(list(source.rows()), prompts.rows):
        row = source.rename(line, row)
        if names is None:
            names, first = set(row), line
        elif set(row) != names:
            _uneven(source, line, set(row), names, first)
        prompt = Prompt(_messages(source, line, row["prompt"], system), _columns(row), line)
        known = made.setdefault(prompt.id, prompt)
        if known is prompt:
            continue
        if known.columns != prompt.columns:
            column = next(name for name in prompt.columns if prompt.columns[name] != known.columns[name])
            raise source.error(
                line,
                f"the same prompt as in {source.unit} {known.line}, with another {column!r}",
                "take out the one that is wrong",
            )
        copies["duplicate"] += 1
    if not made:
        raise source.error(None, "no rows" if prompts.rows is None else f"no rows are left by rows: {prompts.rows}")
    return list(made.values())


def content_hash(prompts: PromptSet, system: str | None = None) -> str:
    """SHA-256 of all that decides what `read_prompts` gives: the file, or the Hub's rows, and what is done to them."""
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


def _messages(source: Source, line: int, prompt: Any, system: str | None) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
    elif isinstance(prompt, list) and prompt:
        messages = [_message(source, line, index, each) for index, each in enumerate(prompt)]
    else:
        raise source.error(
            line, f"'prompt' must be text or a list of messages, not {kind(prompt)}", 'a message: {"role", "content"}'
        )
    if any(message["role"] == "system" for message in messages[1:]):
        raise source.error(line, "a system message must be the first")
    if messages[-1]["role"] != "user":
        raise source.error(line, f"the last message must be the user's, not the {messages[-1]['role']}'s")
    if not messages[-1]["content"].strip():
        raise source.error(line, "the prompt is empty")
    return tuple(under(system, messages))


def _message(source: Source, line: int, index: int, message: Any) -> Message:
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        raise source.error(line, f"message {index} of 'prompt' must hold role and content", '{"role", "content"}')
    extra = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
    if extra:
        raise source.error(line, f"message {index} of 'prompt' holds {extra[0]!r}: only role and content are read")
    if message["role"] not in ROLES:
        near = did_you_mean(str(message["role"]), ROLES)
        raise source.error(
            line, f"message {index} of 'prompt' has the role {message['role']!r}{near}", ", ".join(ROLES)
        )
    if not isinstance(message["content"], str):
        raise source.error(line, f"message {index} of 'prompt': content must be text, not {kind(message['content'])}")
    return {"role": message["role"], "content": message["content"]}


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The other columns, as they will come back from JSON (a date becomes text)."""
    others = {name: value for name, value in row.items() if name != "prompt"}
    return json.loads(json.dumps(others, default=str))


def _uneven(source: Source, line: int, names: set[str], usual: set[str], first: int) -> None:
    for name in sorted(usual - names):
        near = did_you_mean(name, names - usual).replace("did you mean", "but there is")
        hint = "write null where a row has no value"
        raise source.error(line, f"no column {name!r}, which {source.unit} {first} has{near}", hint)
    name = min(names - usual)
    hint = f"write null in {source.unit} {first} and wherever a row has no value"
    raise source.error(line, f"a column {name!r}, which {source.unit} {first} has not", hint)
