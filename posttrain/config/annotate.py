"""The section of what is found out about the round's prompts: topic, intentions, difficulty, pass rate."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from posttrain.config.keys import KeyedByName
from posttrain.config.rewards import JudgeModel
from posttrain.config.section import MOST, Section, complain

# The columns, and the key that gives each.
ANNOTATED = {
    "pass_rate": "pass_rate",
    "topic": "topics",
    "tags": "tags",
    "intentions": "tags",
    "difficulty": "difficulty",
}


class Rated(Section):
    """A judge with a rubric for prompts."""

    rubric: Annotated[str, KeyedByName()]
    """A shipped rubric, or a path with a slash."""
    judge: JudgeModel
    """The judge: see docs/judges.md."""


class Annotate(Section):
    """Columns that `scores` writes beside each sample, for filters and for `sft.mix.balance`."""

    pass_rate: bool = True
    """`pass_rate`: the share of the prompt's K samples whose score is 0.5 or more."""
    topics: int | None = Field(default=None, ge=2, le=MOST)
    """`topic`: this many clusters of all training prompts (k-means on TF-IDF), named by their three heaviest words."""
    tags: Rated | None = None
    """`tags`: the intentions by a judge with a rubric such as tags.md; `intentions`: their number."""
    difficulty: Rated | None = None
    """`difficulty`: the score by a judge with a rubric such as difficulty.md."""

    @model_validator(mode="after")
    def _something(self) -> Annotate:
        if not (self.pass_rate or self.topics or self.tags or self.difficulty):
            complain((), "no annotation is selected", "leave it out by `annotate: null`", rule="recipe-nothing-to-do")
        return self

    @property
    def of_prompts(self) -> bool:
        """Whether the prompts themselves are annotated, besides their pass rate."""
        return bool(self.topics or self.tags or self.difficulty)

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return [name for name, key in ANNOTATED.items() if getattr(self, key)]
