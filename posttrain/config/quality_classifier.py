"""The section of the learned quality classifier."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config.keys import NotInKey
from posttrain.config.section import Count, Section, Share, complain


class QualityClassifier(Section):
    """Fitted between rounds on what judges, or people, kept and dropped; the filter `learned-quality` reads it."""

    features: Literal["tfidf", "policy"] = Field(
        default="tfidf",
        description="What it sees of a text: TF-IDF of words and word pairs, or the mean of the round's policy's last "
        "hidden states.",
    )
    judged_by: list[str] = Field(
        default=["quality", "judge"],
        description="Filters whose verdicts of earlier rounds it learns: what they dropped, and what passed them all.",
    )
    labels: Annotated[str | None, NotInKey()] = Field(
        default=None,
        description="People's verdicts: a JSONL file with prompt, completion and good (true or false) in each row.",
    )
    heldout: Share = Field(default=0.25, description="Share of the prompts that it is measured on and not fitted to.")
    min_auc: float = Field(
        default=0.7,
        ge=0.5,
        lt=1,
        description="It is off unless the lower end of its held-out AUC's 95 % interval is above this.",
    )
    min_rows: Count = Field(default=50, description="It is off with fewer good, or fewer bad, rows than so many.")

    @model_validator(mode="after")
    def _learns_from_somebody(self) -> QualityClassifier:
        if not self.judged_by and self.labels is None:
            complain(
                (),
                "there is nothing to learn from",
                "name filters in `judged_by`, or a file in `labels`",
                rule="recipe-nothing-to-do",
            )
        return self
