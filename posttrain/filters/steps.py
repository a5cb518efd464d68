"""The filter of answers with a weak step."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from posttrain.errors import DataError
from posttrain.filters.base import Decide, Filter, FilterContext, Scope, Verdict, dropped
from posttrain.filters.rows import Rows

_COLUMN = "step_scores"


class Steps(Filter):
    """Drops answers whose weakest step is among the weakest of the round; none where no step has a score (round 1).

    Figure: the score of the answer's weakest step. What scores are, and what they are not: see docs/stages.md. The
    bound is taken over all samples of the round, whatever other filters keep of them.
    """

    scope: ClassVar[Scope] = "whole"
    use: Literal["steps"] = "steps"
    quantile: float = Field(default=0.1, gt=0, lt=1, description="share of the round's answers with steps that go")

    def lacks(self, rows: Rows) -> str | None:
        return None if rows.has(_COLUMN) else f"a column {_COLUMN!r}, a list of numbers for each answer"

    def start(self, context: FilterContext) -> Decide:
        lowest = array("d")
        for batch in context.corpus([_COLUMN]):
            lowest.extend(low for low in _weakest(Rows(batch)) if low is not None)
        bound = float(np.quantile(lowest, self.quantile)) if lowest else -np.inf

        def decide(rows: Rows) -> dict[int, Verdict]:
            return dropped(
                Verdict("a weak step", low) if low is not None and low < bound else None for low in _weakest(rows)
            )

        return decide


def weakest(scores: Sequence[float | None] | None) -> float | None:
    """The lowest score of an answer's steps; None where none has a score."""
    return min((score for score in scores or () if score is not None and not math.isnan(score)), default=None)


def _weakest(rows: Rows) -> list[float | None]:
    lists = rows.column(_COLUMN)
    kind = rows.batch.schema.field(_COLUMN).type
    if not pa.types.is_null(kind) and not _is_of_numbers(kind):
        raise DataError(f"the column {_COLUMN!r} holds {kind}, not lists of numbers", rule="filter-numbers")
    return [weakest(scores) for scores in lists]


def _is_of_numbers(kind: pa.DataType) -> bool:
    of, lists = pa.types, (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(check(kind) for check in lists):
        return False
    value = kind.value_type
    return of.is_floating(value) or of.is_integer(value) or of.is_null(value)
