"""The section of corrections: wrong answers that the policy is asked to find the mistake in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.config.section import Count, Few, Section, Temperature, Tokens


class Correction(Section):
    """Asks the policy again where no sample is right, with one of them and what is said to it. Second answers that are
    right pass the filters beside the samples."""

    prompts: Count | None = None
    """Most prompts of those that have no right answer; null: all."""
    message: str = Field(default="This answer is not right. Find the mistake, and answer again.", min_length=1)
    """What the user says to the wrong answer."""
    turns: int = Field(default=1, ge=1, le=20)
    """Times that the policy is asked again, each time with all that was said before."""
    k: Few = 2
    """Answers each time."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    max_new_tokens: Tokens = 256
    """Longest answer, in tokens. Default: samples.max_new_tokens."""
    learn: Literal["answer", "dialogue"] = "answer"
    """`answer`: the right answer is learned as if it were the first; `dialogue`: as the answer to what was said."""
