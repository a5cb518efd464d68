"""Rows of an Arrow batch as plain texts, taken out once for all filters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa

from posttrain.errors import DataError


def message_text(messages: Sequence[Mapping[str, str]]) -> str:
    """The text of a prompt: its contents, one below the other, without system messages.

    A system message is the same in many prompts; two prompts are not alike because they share it.
    """
    return "\n".join(message["content"] or "" for message in messages if message["role"] != "system")


# Where the answer that a row is judged by stands: the first of these columns that there is.
ANSWERS = ("completion", "chosen", "messages")
_SYSTEM = frozenset({"system"})
_NOT_ANSWERS = frozenset({"system", "developer", "user", "tool"})


class Rows:
    """Rows of one batch. What is read of a column is kept and shared with every selection made by `take`.

    A pair is judged by its chosen answer: what is wrong with the rejected one is what a pair is for.
    """

    def __init__(
        self,
        batch: pa.RecordBatch,
        indices: list[int] | None = None,
        read: dict[tuple[str, str], list[Any]] | None = None,
    ) -> None:
        self.batch = batch
        self.indices = list(range(batch.num_rows)) if indices is None else indices
        self._read = {} if read is None else read

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, positions: Iterable[int]) -> Rows:
        return Rows(self.batch, [self.indices[position] for position in positions], self._read)

    def has(self, column: str) -> bool:
        return column in self.batch.schema.names

    def column(self, name: str) -> list[Any]:
        """The values of a column. Raises DataError when there is none of that name."""
        return self._picked("values", name, lambda array: array.to_pylist())

    def numbers(self, name: str) -> list[Any]:
        """The values of a column of numbers, None where it is null. Raises DataError when it holds anything else."""
        kind = self._array(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
            raise DataError(f"the column {name!r} holds {kind}, not numbers", rule="filter-numbers")
        return self.column(name)

    def replaced(self, values: Mapping[int, Mapping[str, Any]]) -> Rows:
        """The same rows with other values, by position and column; all else is as it was, bit by bit."""
        batch, size = self.batch, self.batch.num_rows
        for name in dict.fromkeys(name for row in values.values() for name in row):
            new = {self.indices[position]: row[name] for position, row in values.items() if name in row}
            order = list(range(size))
            for number, index in enumerate(new):
                order[index] = size + number
            place, column = batch.schema.get_field_index(name), batch.column(name)
            both = pa.concat_arrays([column, pa.array(list(new.values()), column.type)])
            batch = batch.set_column(place, batch.schema.field(place), both.take(pa.array(order)))
        return Rows(batch, self.indices)

    @property
    def answer_column(self) -> str:
        """The first of ANSWERS that the rows have, else `completion`."""
        return next((name for name in ANSWERS if self.has(name)), ANSWERS[0])

    @property
    def prompts(self) -> list[str]:
        """The text of each prompt, as `message_text` gives it. Without such a column: all turns before the last."""
        if self.has("prompt"):
            return self._picked("text", "prompt", _texts)
        return self._picked("opening", self.answer_column, _openings)

    @property
    def answers(self) -> list[str]:
        """The text of each answer: of a chat the assistant's turns; without a column `prompt`, the last turn alone."""
        return self._picked("answer", self.answer_column, _answers if self.has("prompt") else _last_turns)

    @property
    def said(self) -> tuple[list[Any], list[Any]]:
        """Each prompt and each answer as it stands: text, or messages. Without a column `prompt` as in `prompts`."""
        answers = self.column(self.answer_column)
        if self.has("prompt"):
            return self.column("prompt"), answers
        _ = self.prompts  # raises DataError where they are no messages
        return [(chat or [])[:-1] for chat in answers], [(chat or [])[-1:] for chat in answers]

    @property
    def lengths(self) -> list[int]:
        """The length of each completion in tokens of the policy; in words where there is no `n_tokens`."""
        tokens: list[Any] = self.numbers("n_tokens") if self.has("n_tokens") else [None] * len(self)
        if None not in tokens:
            return tokens
        return [len(text.split()) if n is None else n for n, text in zip(tokens, self.answers, strict=True)]

    @property
    def prompt_keys(self) -> list[str]:
        """The key by which rows are grouped into prompts: `prompt_id`, or where there is no such
        column the prompt's text."""
        return self.column("prompt_id") if self.has("prompt_id") else self.prompts

    def _array(self, name: str) -> Any:
        if not self.has(name):
            columns = ", ".join(self.batch.schema.names)
            raise DataError(
                f"a filter reads the column {name!r}, which the rows lack",
                hint=f"there are: {columns}",
                rule="filter-lacks",
            )
        return self.batch.column(name)

    def _picked(self, what: str, name: str, read: Callable[[Any], list[Any]]) -> list[Any]:
        if (what, name) not in self._read:
            self._read[what, name] = read(self._array(name))
        whole = self._read[what, name]
        return whole if len(self) == len(whole) else [whole[index] for index in self.indices]


Turns = Sequence[tuple[str, str | None]]


def _texts(array: Any) -> list[str]:
    """A column of strings or of message lists as texts, without system messages; null is an empty text."""
    return _read(array, lambda turns: _spoken(turns, _SYSTEM))


def _answers(array: Any) -> list[str]:
    return _read(array, lambda turns: _spoken(turns, _NOT_ANSWERS))


def _last_turns(array: Any) -> list[str]:
    return _read(array, lambda turns: _spoken(turns[-1:], _NOT_ANSWERS))


def _openings(array: Any) -> list[str]:
    if _is_text(array.type):
        raise DataError(
            "there is no column 'prompt', and in plain text nothing says where the prompt ends",
            hint="write prompt and answer into two columns, or both as chat messages",
            rule="filter-no-prompt",
        )
    return _read(array, lambda turns: _spoken(turns[:-1], _SYSTEM))


def _read(array: Any, chat: Callable[[Turns], str]) -> list[str]:
    if _is_text(array.type):
        return [text or "" for text in array.to_pylist()]
    return [chat(turns) for turns in _chats(array)]


def _spoken(turns: Turns, without: Collection[str]) -> str:
    return "\n".join(content or "" for role, content in turns if role not in without)


def _is_text(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _chats(array: Any) -> Iterator[Turns]:
    """The turns of each row of a column of message lists. Raises DataError when it holds anything else."""
    kind = array.type
    chat = (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_struct(kind.value_type)
    if not chat or not {"role", "content"} <= {
        kind.value_type.field(i).name for i in range(kind.value_type.num_fields)
    }:
        raise DataError(
            f"prompts and completions must be text or chat messages, not {kind}",
            hint='write a string, or a list of {"role": …, "content": …}',
            rule="filter-text",
        )
    # Two flat lists are several times faster than a dict for each message.
    offsets = array.offsets.to_pylist()
    first = offsets[0]
    messages = array.values.slice(first, offsets[-1] - first)
    roles, contents = messages.field("role").to_pylist(), messages.field("content").to_pylist()
    if not all(content is None or isinstance(content, str) for content in contents):
        raise DataError("a message's content is not text", rule="filter-text")
    turns = list(zip(roles, contents, strict=True))
    for start, end in pairwise(offsets):
        yield turns[start - first : end - first]
