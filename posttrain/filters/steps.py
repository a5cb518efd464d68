"""The filter of answers with a weak step."""

from __future__ import annotations

from array import array
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from posttrain.filters.base import Decide, Filter, FilterContext, Scope, Verdict, dropped
from posttrain.filters.rows import Rows

COLUMN = "step_scores"


class Steps(Filter):
    """Drops answers whose weakest step is among the weakest of the round; none where no step has a score (round 1).

    Figure: the score of the answer's weakest step. What scores are, and what they are not: see docs/stages.md. The
    bound is taken over all samples of the round, whatever other filters keep of them.
    """

    scope: ClassVar[Scope] = "whole"
    use: Literal["steps"] = "steps"
    quantile: float = Field(default=0.1, gt=0, lt=1, description="share of the round's answers with steps that go")

    def lacks(self, rows: Rows) -> str | None:
        return None if rows.has(COLUMN) else f"a column {COLUMN!r}, a list of numbers for each answer"

    def start(self, context: FilterContext) -> Decide:
        weakest = array("d")
        for batch in context.corpus([COLUMN]):
            weakest.extend(low for low in _weakest(Rows(batch)) if low is not None)
        bound = float(np.quantile(weakest, self.quantile)) if weakest else -np.inf

        def decide(rows: Rows) -> dict[int, Verdict]:
            return dropped(
                Verdict("a weak step", low) if low is not None and low < bound else None for low in _weakest(rows)
            )

        return decide


def _weakest(rows: Rows) -> list[float | None]:
    return [min(scores) if scores else None for scores in rows.column(COLUMN)]
