"""What a filter is: its keys, what it looks at, and the verdicts it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from posttrain.filters.rows import Rows

Scope = Literal["row", "prompt", "corpus"]


class Verdict(NamedTuple):
    """Why a row is dropped. `reason` is one of a few fixed phrases, so that rows can be counted by it."""

    reason: str
    figure: float | None  # the number that decided


# From rows to the verdicts on those that are dropped, by their index among the rows given.
Judge = Callable[[Rows], Mapping[int, Verdict]]
Corpus = Callable[[Sequence[str]], Iterable[pa.RecordBatch]]


@dataclass(frozen=True)
class FilterContext:
    """What a filter may know beside the rows.

    `evaluation_prompts`: the texts of all prompts that are evaluated on, as `rows.message_text` gives them.
    `scratch`: a folder that survives a kill, for what was dear to find out; None: nothing is kept.
    `corpus`: all rows before any filter, those of the given columns that there are; for a filter that must know the
    whole corpus before its first verdict. Each call is one more pass. `filters.run` fills it in where it can.
    `classifier`: the folder of the learned quality classifier; `policy`: the model whose states it reads, if it does.
    """

    evaluation_prompts: Sequence[str] = ()
    seed: int = 0
    scratch: Path | None = None
    corpus: Corpus | None = None
    classifier: Path | None = None
    policy: Path | None = None


class Filter(BaseModel, ABC):
    """One filter with its keys. Holds no state: that lives in what `start` returns, for one pass over one corpus.

    `scope` says what a verdict depends on: the `row` alone, all rows of its `prompt` (the driver then never cuts a
    prompt in two), or all rows of the `corpus` before it. Rows may be filtered in parallel up to `prompt`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    scope: ClassVar[Scope] = "row"
    needs: ClassVar[frozenset[str]] = frozenset()  # of the engine: names of `sampling.protocol.Capabilities`
    use: Any = None  # in each filter a Literal: its name

    def key(self) -> dict[str, Any]:
        """What of its keys decides verdicts: not where a file lies or a server is, whose content is in `outside`."""
        return self.model_dump(mode="json")

    def outside(self) -> dict[str, str]:
        """Hashes, by name, of what decides verdicts beside the keys and the rows: models, rubrics."""
        return {}

    @abstractmethod
    def start(self, context: FilterContext) -> Judge:
        """A judge for one pass. Raises InputError where the context lacks what the filter needs."""
