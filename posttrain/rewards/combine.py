"""Combines rewards into one score. Pure.

A reward model's logits have no absolute scale and differ from round to round, so they enter as
σ((logit − mean) / deviation) over the candidates at hand: 0.5 is the average candidate. The score is the weighted mean
of the rewards that score the row; a row that none scores has no score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

REWARD_MODEL = "reward-model"
RIGHT = 0.5  # from this score on an answer counts as right


def of_functions(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights, by name, without the reward model's: functions alone say what is right."""
    return {name: weight for name, weight in weights.items() if name != REWARD_MODEL}


def spread(logits: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (at least 1e-6, so that equal logits all become 0.5)."""
    if not logits:
        return 0.0, 1.0
    mean = sum(logits) / len(logits)
    return mean, max(math.sqrt(sum((x - mean) ** 2 for x in logits) / len(logits)), 1e-6)


def squash(logit: float, mean: float, deviation: float) -> float:
    """σ of the standardised logit, in (0, 1)."""
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, (logit - mean) / deviation))))


def combine(
    values: Mapping[str, float | None], weights: Mapping[str, float], mean: float = 0.0, deviation: float = 1.0
) -> float | None:
    """Weighted mean of the rewards in `weights` that are not None; None where all are."""
    total = weight_sum = 0.0
    for name, weight in weights.items():
        value = values.get(name)
        if value is None:
            continue
        total += weight * (squash(value, mean, deviation) if name == REWARD_MODEL else value)
        weight_sum += weight
    return total / weight_sum if weight_sum else None
