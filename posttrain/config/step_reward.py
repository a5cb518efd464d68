"""The section of the step reward model."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from posttrain.config.section import Count, Few, Section, Share, Temperature, Tokens, complain
from posttrain.config.trained import Trained


class StepLabels(Section):
    """How steps are labelled: a step is the first wrong one of an answer where none of K answers that go on from behind
    it is right, and some that go on from before it is. Of prompts that the samples solve sometimes."""

    prompts: Count | None = None
    """Most prompts; null: all with right and wrong samples."""
    answers: Few = 2
    """Most right samples of a prompt, and most wrong ones."""
    k: Few = 4
    """Answers that are sampled from each beginning that is looked at."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    max_new_tokens: Tokens = 256
    """Longest answer, in tokens. Default: samples.max_new_tokens."""
    heldout: Share = 0.15
    """Share of prompts held out from training, to evaluate the model on."""


class StepReward(Trained):
    """A reward model for steps: whether each step of an answer is right; plus RewardConfig's fields."""

    trainer, trl_config = "step_reward", "RewardConfig"
    refused: ClassVar = {"center_rewards_coefficient": "the logits are of right and wrong steps, whose middle is 0"}

    start: Literal["base", "previous"] = "base"
    """From the base model, or the last step reward model."""
    labels: StepLabels = Field(default_factory=StepLabels)
    """The labels that it learns from."""

    @model_validator(mode="after")
    def _alone(self) -> StepReward:
        if self.variants:
            complain(
                ("variants",), "variants are compared as policies are, which this is not", rule="recipe-refused-key"
            )
        return self
