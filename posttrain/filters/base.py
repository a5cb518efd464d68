"""What a filter is: its keys, what it looks at, and the verdicts it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict

from posttrain.filters.rows import Rows

Scope = Literal["row", "prompt", "corpus"]


class Verdict(NamedTuple):
    """Why a row is dropped. `reason` is one of a few fixed phrases, so that rows can be counted by it."""

    reason: str
    figure: float | None  # the number that decided


class Mask(NamedTuple):
    """A row that stays, with other text in place of what was found."""

    found: Mapping[str, int]  # findings of each kind
    columns: Mapping[str, Any]  # the new values of those columns that change


# From rows to what becomes of those that do not simply stay, by their index among the rows given.
Judge = Callable[[Rows], Mapping[int, Verdict | Mask]]


def each_answer(verdict: Callable[[str], Verdict | None]) -> Judge:
    """The judge of a filter that looks at nothing but one answer's text."""

    def judge(rows: Rows) -> dict[int, Verdict]:
        return {i: found for i, found in enumerate(map(verdict, rows.answers)) if found is not None}

    return judge


@dataclass(frozen=True)
class FilterContext:
    """What a filter may know beside the rows.

    `evaluation_prompts`: the texts of all prompts that are evaluated on, as `rows.message_text` gives them.
    `special_tokens`: those of the policy's tokenizer, as text; none where it is not known.
    """

    evaluation_prompts: Sequence[str] = ()
    seed: int = 0
    special_tokens: Sequence[str] = ()


class Filter(BaseModel, ABC):
    """One filter with its keys. Holds no state: that lives in what `start` returns, for one pass over one corpus.

    `scope` says what a verdict depends on: the `row` alone, all rows of its `prompt` (the driver then never cuts a
    prompt in two), or all rows of the `corpus` before it. Rows may be filtered in parallel up to `prompt`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    scope: ClassVar[Scope] = "row"
    needs: ClassVar[frozenset[str]] = frozenset()  # of the engine: names of `sampling.protocol.Capabilities`
    reads: ClassVar[frozenset[str]] = frozenset()  # of the context: names of FilterContext's fields
    use: Any = None  # in each filter a Literal: its name

    def resolved(self) -> Self:
        """The same filter with what its keys name by files written into the keys: what a stage's key is made of."""
        return self

    @abstractmethod
    def start(self, context: FilterContext) -> Judge:
        """A judge for one pass. Raises InputError where the context lacks what the filter needs."""

    def lacks(self, rows: Rows) -> str | None:
        """What these first rows of a file lack for this filter, to follow "needs"; None: nothing."""
        return None
