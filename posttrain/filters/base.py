"""The interface of filters: keys, context, verdicts."""

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
    """A row that is kept with some of its text replaced."""

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


def dropped(verdicts: Iterable[Verdict | None]) -> dict[int, Verdict]:
    """The verdicts of rows that have one, by index, from one for each row in turn."""
    return {i: verdict for i, verdict in enumerate(verdicts) if verdict is not None}


def each_answer(verdict: Callable[[str], Verdict | None]) -> Decide:
    """Decides row by row, from the answer's text alone."""
    return lambda rows: dropped(map(verdict, rows.answers))


@dataclass(frozen=True)
class FilterContext:
    """Inputs of a filter besides the rows.

    `evaluation_prompts`: the texts of all evaluation prompts, as by `rows.message_text`.
    `earlier`: the rows kept in earlier rounds, `prompt` and `completion`, in batches; a new iterable at each call.
    `scratch`: a folder that survives a kill, for expensive results; None: nothing is kept.
    `corpus`: all rows, for a filter that needs the whole corpus before its first verdict. `filters.run` sets it if it
    can iterate over the rows again; otherwise a call raises InputError.
    `reaching`: the same, but only the rows kept by the filters before it; `filters.run` sets it.
    `classifier`: the folder of the learned quality classifier; `policy`: the model whose hidden states it reads.
    `special_tokens`: those of the policy's tokenizer, as text; empty if unknown.
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
    """A filter with its keys. It has no state: that is in the function that `start` returns, for one pass.

    `scope`: what a verdict depends on: the `row` alone, all rows of its `prompt` (batches then never split a prompt),
    all rows of the `corpus` before it, or the `whole` corpus. Rows may be filtered in parallel up to `prompt`. A
    `whole` filter makes another pass over the rows when it starts, by `context.corpus` or `context.reaching` (which
    runs the filters before it once more, too).
    """

    scope: ClassVar[Scope] = "row"
    needs: ClassVar[frozenset[str]] = frozenset()  # of the engine: names of `sampling.protocol.Capabilities`
    reads: ClassVar[frozenset[str]] = frozenset()  # of the context: names of FilterContext's fields
    use: Any = None  # in each filter a Literal: its name

    def external_hashes(self) -> dict[str, str]:
        """Hashes, by name, of further inputs that decide verdicts: models, rubrics, word lists."""
        return {}

    @abstractmethod
    def start(self, context: FilterContext) -> Decide:
        """The function that decides on rows, for one pass. Raises InputError if the context lacks what it needs."""

    def lacks(self, rows: Rows) -> str | None:
        """What these first rows of a file lack for this filter, to complete "needs …"; None: nothing."""
        return None


class AcrossRounds(Filter, ABC):
    """A filter that can also compare with rows kept in earlier rounds, by `context.earlier`."""

    scope: ClassVar[Scope] = "corpus"
    across_rounds: Annotated[bool, KeyedUnlessDefault()] = Field(
        default=False, description="also drop what a row kept in an earlier round is a duplicate of"
    )

    def earlier(self, context: FilterContext) -> Iterable[Rows]:
        """The rows of earlier rounds to compare with; empty if `across_rounds` is off."""
        return map(Rows, context.earlier()) if self.across_rounds else ()
