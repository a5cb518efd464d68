"""The section of the search for right answers to prompts that no sample solved."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.config.section import Count, Section, Temperature, Tokens


class Search(Section):
    """Looks, step by step, for right answers to the round's prompts of which no sample is right. What it finds passes
    the filters beside the samples. With `search` in `dpo.pairs_from` DPO learns to prefer it to a wrong answer that
    begins like it."""

    method: Literal["mcts", "beam"] = "mcts"
    """`mcts`: Monte Carlo tree search, whole answers from the most promising step; `beam`: one step at a time, the most
    promising beginnings go on."""
    prompts: Count | None = None
    """Most prompts of those that no sample solved; null: all."""
    width: int = Field(default=4, ge=2, le=1000)
    """`mcts`: answers sampled from a step at once. `beam`: beginnings that go on, and next steps sampled of each."""
    tokens: Tokens | None = None
    """Tokens that are sampled for a prompt before its search is given up; null: those of four times `width` answers of
    the longest."""
    exploration: float = Field(default=1.0, ge=0, le=1000)
    """Of `mcts`: c of Q + c·P·√N / (1 + n), the weight of steps that have been tried less than their score promises."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    max_new_tokens: Tokens = 256
    """Longest answer, in tokens. Default: samples.max_new_tokens."""

    @property
    def budget(self) -> int:
        """`tokens`, or what stands for null."""
        return self.tokens or 4 * self.width * self.max_new_tokens
