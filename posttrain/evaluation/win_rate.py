"""Win rates: how often one policy's answers are preferred to another's, as they are and at equal length. Pure.

A preference is a number in [0, 1]: 1 for the first answer, 0 for the second, 0.5 for a tie. scipy is imported where it
is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrain.evaluation import statistics
from posttrain.evaluation.statistics import Figure

if TYPE_CHECKING:
    import numpy as np

# Ours: without it preferences by length alone would have an infinite slope. It costs a weight of 10 half a unit of
# log-likelihood, so about a hundred comparisons outweigh it by far.
RIDGE = 0.01


def preference(first: float | None, second: float | None) -> float | None:
    """Preference by two answers' scores: 1.0, 0.0, or 0.5 for a tie; None where either has no score."""
    if first is None or second is None:
        return None
    return 0.5 if first == second else float(first > second)


def win_rate(preferences: Sequence[float]) -> Figure:
    """Mean preference with its normal 95 % interval; a tie counts one half."""
    return statistics.mean_share(preferences)


def length_controlled(preferences: Sequence[float], longer: Sequence[float]) -> Figure:
    """The win rate that is expected where both answers are equally long, with its 95 % interval.

    longer: length of the first answer − that of the second, of each comparison, in any unit.

    Length-controlled AlpacaEval (Dubois et al. 2024, arXiv 2404.04475, section 3): a logistic regression of the
    preference on an intercept θ and tanh(longer / its standard deviation), of which σ(θ) is reported. Their third term,
    the difficulty of each instruction, takes many models to fit and is left out. The interval is σ(θ ± 1.96 s) with s
    from the sandwich estimator, which is valid for preferences that are not binary. The ridge acts as a prior with
    variance 1 / RIDGE: if all answers are longer and all are preferred, equal length cannot be judged, and the interval
    is nearly [0, 1].
    """
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import expit

    y, difference = np.asarray(preferences, dtype=np.float64), np.asarray(longer, dtype=np.float64)
    if not (y != 0.5).any():  # nothing, or ties alone: no preference that length could explain
        return win_rate(preferences)
    x = np.stack([np.ones_like(y), np.tanh(difference / (difference.std() or 1.0))], axis=1)
    ridge = np.full(2, RIDGE / len(y))

    def loss(b: np.ndarray) -> float:
        return float((np.logaddexp(0, x @ b) - y * (x @ b)).mean() + (ridge * b * b).sum() / 2)

    def gradient(b: np.ndarray) -> np.ndarray:
        return x.T @ (expit(x @ b) - y) / len(y) + ridge * b

    def hessian(b: np.ndarray) -> np.ndarray:
        p = expit(x @ b)
        return (x * (p * (1 - p))[:, None]).T @ x / len(y) + np.diag(ridge)

    b = minimize(loss, np.zeros(2), jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-9}).x
    scores, inverse = x * (expit(x @ b) - y)[:, None], np.linalg.inv(hessian(b))
    spread = math.sqrt((inverse @ (scores.T @ scores + RIDGE * np.eye(2)) @ inverse)[0, 0]) / len(y)
    low, value, high = (float(expit(b[0] + part * 1.96 * spread)) for part in (-1, 0, 1))
    return {"value": value, "ci95": [low, high], "n": len(y)}
