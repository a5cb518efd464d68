"""Rejection sampling's choice: of the K answers to a prompt, the best."""

from __future__ import annotations

import math
from hashlib import blake2b
from itertools import groupby, pairwise
from typing import Any, ClassVar, Literal

from pydantic import Field

from posttrain.config.section import MOST
from posttrain.filters.base import Decide, Filter, FilterContext, Scope, Verdict
from posttrain.filters.rows import Rows


class BestOfK(Filter):
    """Keeps the `keep` best rows of each prompt by `score`, of those that reach `threshold`.

    Of equal scores the lower sample index is better. Figures: `below the threshold` the score; `not the best` the
    rank among the prompt's candidates, from 1; `no score` none. With `choose: random` the candidates are the same and
    the rank is drawn by a hash of seed, prompt and sample index: the control arm that shows what choosing is worth.
    """

    scope: ClassVar[Scope] = "prompt"
    use: Literal["best-of-k"] = "best-of-k"
    keep: int = Field(default=1, ge=1, le=MOST, description="rows kept of each prompt")
    threshold: float | None = Field(
        default=None, ge=-MOST, le=MOST, description="lowest score kept; null: any score will do"
    )
    choose: Literal["best", "random"] = Field(default="best", description="best by score, or a random candidate")

    def lacks(self, rows: Rows) -> str | None:
        if not rows.has("score"):
            return "a column 'score'"
        several = any(one == next_ for one, next_ in pairwise(rows.prompt_keys))
        return None if several or self.threshold is not None else "several answers to a prompt, one below the other"

    def start(self, context: FilterContext) -> Decide:
        def decide(rows: Rows) -> dict[int, Verdict]:
            keys, scores = rows.prompt_keys, rows.numbers("score")
            samples = rows.column("sample_index") if rows.has("sample_index") else list(range(len(rows)))
            verdicts: dict[int, Verdict] = {}

            def order(i: int) -> tuple[Any, ...]:
                if self.choose == "random":
                    return (draw(context.seed, keys[i], samples[i]),)
                return -scores[i], samples[i]

            for _, group in groupby(range(len(rows)), key=keys.__getitem__):
                candidates = []
                for i in group:
                    if scores[i] is None or math.isnan(scores[i]):
                        verdicts[i] = Verdict("no score", None)
                    elif self.threshold is not None and scores[i] < self.threshold:
                        verdicts[i] = Verdict("below the threshold", scores[i])
                    else:
                        candidates.append(i)
                for rank, i in enumerate(sorted(candidates, key=order)[self.keep :], self.keep + 1):
                    verdicts[i] = Verdict("not the best", rank)
            return verdicts

        return decide


def draw(seed: int, prompt_key: str, sample: int) -> bytes:
    return blake2b(f"{seed}/{prompt_key}/{sample}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
