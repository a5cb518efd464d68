"""A judge as a reward: called as a reward function is, its score on a scale from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from posttrain.config import RewardEntry
from posttrain.data.messages import Prompt
from posttrain.rewards import judge as judges
from posttrain.rewards import rubric as rubrics
from posttrain.rewards.judge import Judge
from posttrain.rewards.judge_prompt import spoken
from posttrain.rewards.protocol import DEFAULT, Columns, Conversations, Runtime


@dataclass(frozen=True)
class JudgeReward:
    """Picklable, as a Reward is."""

    reads_columns: ClassVar[bool] = False

    name: str
    judge: Judge

    @property
    def identity(self) -> str:
        return self.judge.identity

    def __call__(self, prompts: Conversations, completions: Conversations, columns: Columns) -> list[float | None]:
        """One score in [0, 1], or None, for each row. Raises EngineError as `Judge.scores` does."""
        texts = [(spoken(prompt), spoken(answer)) for prompt, answer in zip(prompts, completions, strict=True)]
        scores = self.judge.scores(texts)
        return [None if score is None else self.judge.rubric.scaled(score) for score in scores]

    def check_columns(self, columns: Sequence[str]) -> None:
        """A judge reads no columns."""

    def probe(self, prompts: Sequence[Prompt]) -> None:
        """Raises EngineError where the judge cannot judge a plain text."""
        self.judge.probe()

    def golden_cases(self) -> None:
        """A judge has none: it may say another thing the next time."""


def load(entry: RewardEntry, runtime: Runtime = DEFAULT) -> JudgeReward:
    """The judge of a recipe's entry; what it says is kept in the runtime's folder.

    Raises:
        RewardError: the rubric cannot be read.
    """
    assert entry.judge
    return JudgeReward(entry.name, judges.load(rubrics.load_scoring(entry.use), entry.judge, runtime.folder))
