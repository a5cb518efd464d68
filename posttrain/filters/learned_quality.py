"""The filter that reads the learned quality classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from posttrain.config.keys import KeyedAs
from posttrain.errors import RecipeError
from posttrain.filters.base import Decide, Filter, FilterContext, Verdict
from posttrain.filters.quality_model import as_text, embedder, load
from posttrain.filters.rows import Rows
from posttrain.storage.files import tree_hash


class LearnedQuality(Filter):
    """Drops rows that the learned classifier finds bad; none as long as it is off, or there is none (round 1).

    Figure: the probability that the row is good. What it was fitted to, and when it is on: see docs/judges.md. It
    learns from judges what they keep, their mistakes included, and is blind where its training rows were all alike.
    """

    use: Literal["learned-quality"] = "learned-quality"
    threshold: float = Field(default=0.5, gt=0, lt=1, description="Rows with a lower probability to be good go.")
    model: Annotated[str | None, KeyedAs("classifier")] = Field(
        default=None,
        description="The folder of a fitted classifier (an artifact `quality_classifier` of TF-IDF features); null: "
        "the round's own.",
    )

    def external_hashes(self) -> dict[str, str]:
        return {"classifier": tree_hash(Path(self.model))} if self.model else {}

    def start(self, context: FilterContext) -> Decide:
        folder = Path(self.model) if self.model else context.classifier
        fitted = load(folder) if folder else None
        if fitted is None:
            return lambda rows: {}
        if not fitted.terms and context.policy is None:
            raise RecipeError(
                "this classifier reads a policy's hidden states, so it works only in the run it was fitted in",
                hint="fit one with `quality_classifier.features: tfidf`",
                rule="filter-policy-states",
            )
        embed = None if fitted.terms else embedder(context.policy)

        def decide(rows: Rows) -> dict[int, Verdict]:
            texts = [as_text(prompt, answer) for prompt, answer in zip(rows.prompts, rows.answers, strict=True)]
            chances = fitted.probabilities(texts, embed)
            return {i: Verdict("learned: poor", p) for i, p in enumerate(chances) if p < self.threshold}

        return decide
