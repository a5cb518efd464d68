"""The section of the learned quality classifier."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config.keys import NotInKey
from posttrain.config.section import Count, Section, Share, complain


class QualityClassifier(Section):
    """A classifier fitted between rounds to rows kept and dropped by judges or people; see `learned-quality`."""

    features: Literal["tfidf", "policy"] = "tfidf"
    """Features of a text: TF-IDF of words and word pairs, or the mean of the policy's last hidden states."""
    judged_by: list[str] = Field(default=["quality", "judge"])
    """Filters whose verdicts of earlier rounds are labels: rows they dropped are bad, rows that passed all filters are
    good."""
    labels: Annotated[str | None, NotInKey()] = None
    """Labels by people: a JSONL file with prompt, completion and good (true or false) in each row."""
    heldout: Share = 0.25
    """Share of the prompts that it is evaluated on, not fitted to."""
    min_auc: float = Field(default=0.7, ge=0.5, lt=1)
    """Off unless the lower end of its held-out AUC's 95 % interval is above this."""
    min_rows: Count = 50
    """Off with fewer good, or fewer bad, rows than this."""

    @model_validator(mode="after")
    def _learns_from_somebody(self) -> QualityClassifier:
        if not self.judged_by and self.labels is None:
            complain(
                (),
                "no source of labels is given",
                "name filters in `judged_by`, or a file in `labels`",
                rule="recipe-nothing-to-do",
            )
        return self
