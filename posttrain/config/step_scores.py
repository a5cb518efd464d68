"""The section of step scores."""

from __future__ import annotations

from typing import Literal

from posttrain.config.section import Section


class StepScores(Section):
    """How good each step of a sample is, by what the last round trained.

    `scores` writes the column `step_scores` beside each sample, for filters such as `steps`.
    """

    by: Literal["dpo", "step_reward"] = "dpo"
    """`dpo`: DPO's policy and its reference, no model is trained for it; `step_reward`: the step reward model."""
