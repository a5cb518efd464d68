"""Whether a judge is right as often as it is sure: expected calibration error. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.evaluation.statistics import Figure

BINS = 10
_DRAWS = 1000


def calibration(margins: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """The calibration of a reward model on labelled pairs.

    margins: reward of the chosen answer − that of the rejected one, of each pair. Under Bradley and Terry the model
    takes the answer with the higher reward for the better one with probability σ(|margin|), and is right where the
    margin is positive.

    Returns `ece`, the expected calibration error over ten bins of equal width (Guo et al. 2017, arXiv 1706.04599,
    equation 3) with a bootstrap 95 % interval (percentile, 1,000 resamples); with few pairs it is overestimated, since
    chance alone moves each bin off. And `bins`: mean `confidence`, `accuracy` and `n` of each that has pairs.
    """
    margin = np.asarray(margins, np.float64)
    confidence, right = 1 / (1 + np.exp(-np.abs(margin))), (margin > 0).astype(np.float64)
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
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


def _error(bins: npt.NDArray[np.int64], apart: npt.NDArray[np.float64]) -> float:
    """Σ over bins of |Σ (right − confidence)| / N."""
    return float(np.abs(np.bincount(bins, weights=apart, minlength=BINS)).sum() / len(bins))
