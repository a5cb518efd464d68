"""The section of step scores."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from posttrain.config.keys import KeyedUnlessDefault
from posttrain.config.section import Section, complain


class StepScores(Section):
    """How good each step of a sample is, by what the last round trained.

    `scores` writes the column `step_scores` beside each sample, for filters such as `steps`.
    """

    by: Annotated[Literal["dpo", "step_reward"], KeyedUnlessDefault()] = "dpo"
    """`dpo`: DPO's policy and its reference, no model is trained for it; `step_reward`: the step reward model."""

    separator: str = Field(default=r"\n+", min_length=1)
    """What ends a step: a regular expression. Matches without a character end none; a part without a letter or digit
    belongs to the step before."""

    @field_validator("separator")
    @classmethod
    def _is_a_pattern(cls, given: str) -> str:
        try:
            re.compile(given)
        except re.error as error:
            complain((), f"it is no regular expression: {error}", rule="recipe-pattern")
        return given
