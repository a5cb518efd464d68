"""Whether a judge is right as often as it is sure: expected calibration error. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.evaluation.statistics import Figure, mean_share
from posttrain.evaluation.win_rate import preference

BINS = 10
_DRAWS = 1000
_SUREST = 1 - 1e-9  # a probability of 1 would have an infinite margin


def calibration(margins: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """The calibration of a reward model, or of a judge, on labelled pairs.

    margins: reward of the chosen answer − that of the rejected one, of each pair. Under Bradley and Terry the model
    takes the answer with the higher reward for the better one with probability σ(|margin|), and is right where the
    margin is positive; a tie, a margin of 0, is half right.

    Returns `ece`, the expected calibration error over ten bins of equal width (Guo et al. 2017, arXiv 1706.04599,
    equation 3) with a bootstrap 95 % interval (percentile, 1,000 resamples); with few pairs it is overestimated, since
    chance alone moves each bin off. And `bins`: mean `confidence`, `accuracy` and `n` of each that has pairs.
    """
    margin = np.asarray(margins, np.float64)
    confidence, right = 1 / (1 + np.exp(-np.abs(margin))), (np.sign(margin) + 1) / 2
    # Rounded: a judge's 0.9 is the edge of a bin, and the last bits of σ would put it into one or the other.
    bins = np.minimum(np.round(confidence * BINS, 6).astype(np.int64), BINS - 1)
    shown = [
        {"confidence": float(confidence[of].mean()), "accuracy": float(right[of].mean()), "n": int(of.sum())}
        for at in range(BINS)
        if (of := bins == at).any()
    ]
    count = len(margin)
    if not count:
        return {"ece": {"value": None, "ci95": None, "n": 0}, "bins": []}
    random = np.random.default_rng(seed)
    drawn = [_error(bins[of], (right - confidence)[of]) for of in random.integers(0, count, (_DRAWS, count))]
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = _error(bins, right - confidence)
    ece: Figure = {"value": value, "ci95": [float(low), float(high)], "n": count}
    return {"ece": ece, "bins": shown}


def agreement(preferences: Sequence[float], probabilities: bool) -> dict[str, Any]:
    """How far a judge agrees with labelled pairs.

    preferences: how far it prefers the chosen answer of each pair, in [0, 1]. probabilities: they are how probable it
    thinks that the answer is better; else they only say which answer has the higher score, and are 0, 0.5 or 1.

    Returns `pair_accuracy`, the share of pairs at which it prefers the chosen answer, where a tie counts one half; of
    probabilities also their `calibration`, by their logits as margins (those of 0 and 1 are taken 1e-9 off).
    """
    sides = [preference(one, 0.5) for one in preferences]
    accuracy = mean_share([side for side in sides if side is not None])
    if not probabilities:
        return {"pair_accuracy": accuracy}
    sure = np.clip(np.asarray(preferences, np.float64), 1 - _SUREST, _SUREST)
    return {"pair_accuracy": accuracy, **calibration(np.log(sure / (1 - sure)).tolist())}


def _error(bins: npt.NDArray[np.int64], apart: npt.NDArray[np.float64]) -> float:
    """Σ over bins of |Σ (right − confidence)| / N."""
    return float(np.abs(np.bincount(bins, weights=apart, minlength=BINS)).sum() / len(bins))
