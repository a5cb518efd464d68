"""Rows of an Arrow batch as plain texts, taken out once for all filters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa

from posttrain.errors import DataError


def message_text(messages: Sequence[Mapping[str, str]]) -> str:
    """The text of a prompt: its contents, one below the other, without system messages.

    A system message is the same in many prompts; two prompts are not alike because they share it.
    """
    return "\n".join(message["content"] or "" for message in messages if message["role"] != "system")


class Rows:
    """Rows of one batch. What is read of a column is kept and shared with every selection made by `take`."""

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
            raise DataError(f"the column {name!r} holds {kind}, not numbers")
        return self.column(name)

    @property
    def prompts(self) -> list[str]:
        """The text of each prompt, as `message_text` gives it."""
        return self._picked("text", "prompt", _texts)

    @property
    def answers(self) -> list[str]:
        """The text of each completion."""
        return self._picked("text", "completion", _texts)

    @property
    def lengths(self) -> list[int]:
        """The length of each completion in tokens of the policy; in words where there is no `n_tokens`."""
        tokens: list[Any] = self.numbers("n_tokens") if self.has("n_tokens") else [None] * len(self)
        if None not in tokens:
            return tokens
        return [len(text.split()) if n is None else n for n, text in zip(tokens, self.answers, strict=True)]

    @property
    def prompt_keys(self) -> list[str]:
        """What rows of one prompt have in common: `prompt_id`, or the prompt's text where there is no such column."""
        return self.column("prompt_id") if self.has("prompt_id") else self.prompts

    def _array(self, name: str) -> Any:
        if not self.has(name):
            columns = ", ".join(self.batch.schema.names)
            raise DataError(f"a filter reads the column {name!r}, which the rows lack", hint=f"there are: {columns}")
        return self.batch.column(name)

    def _picked(self, what: str, name: str, read: Callable[[Any], list[Any]]) -> list[Any]:
        if (what, name) not in self._read:
            self._read[what, name] = read(self._array(name))
        whole = self._read[what, name]
        return whole if len(self) == len(whole) else [whole[index] for index in self.indices]


def _texts(array: Any) -> list[str]:
    """A column of strings or of message lists as texts; null is an empty text."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return [text or "" for text in array.to_pylist()]
    chat = (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_struct(kind.value_type)
    if not chat or not {"role", "content"} <= {
        kind.value_type.field(i).name for i in range(kind.value_type.num_fields)
    }:
        raise DataError(
            f"prompts and completions must be text or chat messages, not {kind}",
            hint='write a string, or a list of {"role": …, "content": …}',
        )
    # Two flat lists are several times faster than a dict for each message.
    offsets = array.offsets.to_pylist()
    first = offsets[0]
    messages = array.values.slice(first, offsets[-1] - first)
    roles, contents = messages.field("role").to_pylist(), messages.field("content").to_pylist()
    if not all(content is None or isinstance(content, str) for content in contents):
        raise DataError("a message's content is not text")
    spoken = [(content or "") if role != "system" else None for role, content in zip(roles, contents, strict=True)]
    return [
        "\n".join(text for text in spoken[start - first : end - first] if text is not None)
        for start, end in pairwise(offsets)
    ]
