"""Which of two answers a judge prefers, whatever it is: by two scores, or by comparing.

Answers are rows of a table of scored answers. Equal ones are a tie wherever the judge has an opinion of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.evaluation.win_rate import preference
from posttrain.rewards.pairwise import Pairwise
from posttrain.rewards.protocol import RewardFunction
from posttrain.rewards.scoring import columns_of, reward_values

Answer = Mapping[str, Any]
Pairs = Sequence[tuple[Answer, Answer]]


def preferences(judge: RewardFunction | Pairwise, pairs: Pairs) -> list[float | None]:
    """How far the judge prefers the first answer of each pair, in [0, 1]; None: it does not say. Those who compare are
    not asked about equal answers.

    Raises:
        RewardError: the judge raised, or returned what is no score.
    """
    if isinstance(judge, Pairwise):
        return _compared(judge, pairs)
    first, second = (reward_values([pair[side] for pair in pairs], [judge])[judge.name] for side in (0, 1))
    return [by_scores(pair, *both) for pair, *both in zip(pairs, first, second, strict=True)]


def by_scores(pair: tuple[Answer, Answer], first: float | None, second: float | None) -> float | None:
    """How far the first answer of a pair is preferred, by the score of each. Equal answers are a tie: a model's last
    bits differ from batch to batch."""
    return preference(first, first if _equal(pair) else second)


def _compared(judge: Pairwise, pairs: Pairs) -> list[float | None]:
    apart = [pair for pair in pairs if not _equal(pair)]
    prompts, columns = [one["prompt"] for one, _ in apart], columns_of([one for one, _ in apart])
    first, second = [one["completion"] for one, _ in apart], [other["completion"] for _, other in apart]
    said = iter(judge(prompts, first, second, columns) if apart else ())
    return [0.5 if _equal(pair) else next(said) for pair in pairs]


def _equal(pair: tuple[Answer, Answer]) -> bool:
    return pair[0]["completion"] == pair[1]["completion"]
