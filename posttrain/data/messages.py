"""Plain frozen records for prompts, answers and preferences. Imports nothing of ours.

Messages are the ecosystem's own: `{"role": ..., "content": ...}`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, str]


def prompt_id(messages: Sequence[Message]) -> str:
    """The identity of a prompt: 16 hex digits of the SHA-256 of its messages."""
    plain = [[message["role"], message["content"]] for message in messages]
    return hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode()).hexdigest()[:16]


def under(system: str | None, messages: Sequence[Message]) -> list[Message]:
    """The messages with this system message first, unless they have one of their own."""
    given = list(messages)
    if system is None or given[0]["role"] == "system":
        return given
    return [{"role": "system", "content": system}, *given]


def hinted(hint: str | None, messages: Sequence[Message]) -> list[Message]:
    """The messages with the hint below the text of the last one."""
    if not hint:
        return list(messages)
    *before, last = messages
    return [*before, {**last, "content": f"{last['content']}\n\n{hint}"}]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and the columns that rewards may read (`answer`, ...).

    `line` is where it stands in its file, counted from 1, for messages only.
    """

    messages: tuple[Message, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    line: int = 0

    @property
    def id(self) -> str:
        return prompt_id(self.messages)


@dataclass(frozen=True, slots=True)
class Labelled:
    """One answer to a prompt, and whether it is labelled good."""

    prompt: Prompt
    completion: tuple[Message, ...]
    label: bool


@dataclass(frozen=True, slots=True)
class Preference:
    """Ranked answers to a prompt: edited > chosen > rejected. `level`: how much better chosen is."""

    prompt: Prompt
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    edited: tuple[Message, ...] | None = None
    level: str | None = None


def text_of(messages: Iterable[Mapping[str, Any]]) -> str:
    """All that is said, as one text."""
    return "\n".join(message["content"] or "" for message in messages)
