"""What a filter is: its keys, what it looks at, and the verdicts it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pyarrow as pa
from pydantic import Field

from posttrain.config.keys import KeyedUnlessDefault
from posttrain.config.section import Section
from posttrain.errors import InputError
from posttrain.filters.rows import Rows

Scope = Literal["row", "prompt", "corpus", "whole"]


class Verdict(NamedTuple):
    """Why a row is dropped. `reason` is one of a few fixed phrases, so that rows can be counted by it."""

    reason: str
    figure: float | None  # the number that decided


class Mask(NamedTuple):
    """A row that stays, with other text in place of what was found."""

    found: Mapping[str, int]  # findings of each kind
    columns: Mapping[str, Any]  # the new values of those columns that change


# From rows to verdicts, by index into the rows given; a row without one is kept as it is.
Decide = Callable[[Rows], Mapping[int, Verdict | Mask]]
# All rows before any filter, anew at each call: of the given columns those that there are; None: all columns.
Corpus = Callable[[Sequence[str] | None], Iterable[pa.RecordBatch]]


def read_once(columns: Sequence[str] | None) -> Iterable[pa.RecordBatch]:
    """The corpus of rows that cannot be gone through again."""
    raise InputError(
        "a filter goes over the rows twice, and these can be read once",
        hint="give filters.run a list of batches, or FilterContext(corpus=…)",
        rule="filter-read-once",
    )


def each_answer(verdict: Callable[[str], Verdict | None]) -> Decide:
    """Decides row by row, from the answer's text alone."""

    def decide(rows: Rows) -> dict[int, Verdict]:
        return {i: found for i, found in enumerate(map(verdict, rows.answers)) if found is not None}

    return decide


@dataclass(frozen=True)
class FilterContext:
    """What a filter may know beside the rows.

    `evaluation_prompts`: the texts of all prompts that are evaluated on, as `rows.message_text` gives them.
    `earlier`: the rows that earlier rounds kept, `prompt` and `completion`, in batches; anew at each call.
    `scratch`: a folder that survives a kill, for what was dear to find out; None: nothing is kept.
    `corpus`: for a filter that must know the whole corpus before its first verdict. `filters.run` fills it in where it
    can go through the rows again; otherwise a call raises InputError.
    `reaching`: the same, but only the rows that the filters before it keep, in whole; `filters.run` fills it in.
    `classifier`: the folder of the learned quality classifier; `policy`: the model whose states it reads, if it does.
    `special_tokens`: those of the policy's tokenizer, as text; none where it is not known.
    """

    evaluation_prompts: Sequence[str] = ()
    seed: int = 0
    earlier: Callable[[], Iterable[pa.RecordBatch]] = tuple
    scratch: Path | None = None
    corpus: Corpus = read_once
    reaching: Callable[[], Iterable[Rows]] = tuple
    classifier: Path | None = None
    policy: Path | None = None
    special_tokens: Sequence[str] = ()


class Filter(Section, ABC):
    """One filter with its keys. Holds no state: that lives in what `start` returns, for one pass over one corpus.

    `scope` says what a verdict depends on: the `row` alone, all rows of its `prompt` (the driver then never cuts a
    prompt in two), all rows of the `corpus` before it, or the `whole` corpus, after it too. Rows may be filtered in
    parallel up to `prompt`. A `whole` filter goes over the rows once more when it starts, by `context.corpus` or
    `context.reaching` (for which the filters before it are run once more, too).
    """

    scope: ClassVar[Scope] = "row"
    needs: ClassVar[frozenset[str]] = frozenset()  # of the engine: names of `sampling.protocol.Capabilities`
    reads: ClassVar[frozenset[str]] = frozenset()  # of the context: names of FilterContext's fields
    use: Any = None  # in each filter a Literal: its name

    def external_hashes(self) -> dict[str, str]:
        """Hashes, by name, of what decides verdicts beside the keys and the rows: models, rubrics, word lists."""
        return {}

    @abstractmethod
    def start(self, context: FilterContext) -> Decide:
        """The function that decides on rows, for one pass. Raises InputError if the context lacks what it needs."""

    def lacks(self, rows: Rows) -> str | None:
        """What these first rows of a file lack for this filter, to follow "needs"; None: nothing."""
        return None


class AcrossRounds(Filter, ABC):
    """A filter that can also look at what earlier rounds kept, by `context.earlier`."""

    scope: ClassVar[Scope] = "corpus"
    across_rounds: Annotated[bool, KeyedUnlessDefault()] = Field(
        default=False, description="also drop what a row kept in an earlier round is a duplicate of"
    )

    def earlier(self, context: FilterContext) -> Iterable[Rows]:
        """What it is to look at of earlier rounds: nothing, where `across_rounds` is off."""
        return map(Rows, context.earlier()) if self.across_rounds else ()
