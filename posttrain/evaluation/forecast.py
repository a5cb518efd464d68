"""The accuracy of later rounds and of larger budgets, from the first rounds of a run. Pure.

In two steps, as Llama 3's report forecasts a benchmark (section 3.2.1): from what was spent, how unlikely the right
answers are; from that, the share that is right, by a sigmoid. What is spent are the answers sampled to learn from, C:

    L(C) = L(0) (1 + C / c)^-a          accuracy = σ(u - v L)

L is the negative log-likelihood of the right ones among fixed candidates, normalised over them: that of whole texts
rises again while a policy that gets better leaves their wording behind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from posttrain.evaluation.statistics import Figure

ROUND = 0.02  # standard deviation of log L by which a round is off the curve by chance
_DRAWN = 1.2 * ROUND  # it in fits to points that chance has moved already, which alone would be too sure
FEWEST = 2  # rounds that a forecast needs, besides the starting model
_DRAWS = 2000
# Of c, in parts of the answers of the first round. No larger: each later round brings less than the first.
_SCALES = np.logspace(-3, math.log10(0.3), 51)
_START = 0.3  # how much the starting model counts beside a round as the sigmoid is fitted: it may make other mistakes
_LEAST = 1e-3  # share of right answers below which L is not followed

Floats = npt.NDArray[np.float64]


class Point(NamedTuple):
    """A policy that was measured. `spent`: answers sampled to learn from until then; `nll`: the mean of `normalised`
    over prompts; `accuracy`: pass@1, as a share."""

    spent: float
    nll: float
    accuracy: float


def normalised(totals: Sequence[float], right: Sequence[bool]) -> float | None:
    """How unlikely it is that a policy gives a right one among candidate answers to a prompt, in nats.

    totals: the log-likelihood of each candidate; right: whether it is. −log of the right ones' share of the
    probability that all have, at most −log 0.001; None where all are right, or none is.
    """
    if all(right) or not any(right):
        return None
    values = np.asarray(totals, np.float64)
    weights = np.exp(values - values.max())
    return -math.log(max(float(weights[np.asarray(right)].sum() / weights.sum()), _LEAST))


def forecast(runs: Sequence[Sequence[Point]], wanted: Sequence[float], seed: int = 0) -> list[Figure] | None:
    """The accuracy after so many answers, with 95 % intervals of it as a round would measure it on the same prompts.

    runs: of each its starting model, at 0 answers, and its first rounds; all of one starting model. The curves are
    fitted by least squares. The interval is of 2,000 fits to points that chance moves, see `ROUND`; that the curves may
    be the wrong ones is not in it. None with fewer than two rounds, or where no round is better than the start.
    """
    rounds = [(run[0], one) for run in runs for one in run[1:] if one.spent > 0]
    if len(rounds) < FEWEST or not all(one.nll > 0 for run in runs for one in run):
        return None
    random = np.random.default_rng(seed)
    spent = np.array([one.spent for _, one in rounds])
    start = float(np.mean([math.log(run[0].nll) for run in runs]))
    drawn = random.normal(0, _DRAWN, (1 + _DRAWS, len(rounds)))
    drawn[0] = 0  # the fit itself
    fell = np.array([math.log(first.nll / one.nll) for first, one in rounds]) + drawn
    scale, power = _curve(spent, fell)
    if not power[0]:
        return None
    later = start - power[:, None] * np.log1p(np.asarray(wanted, np.float64) / scale[:, None])
    later[1:] += random.normal(0, _DRAWN, later[1:].shape)
    known = np.array([[run[0].nll for run in runs]]).repeat(1 + _DRAWS, 0)
    measured = np.concatenate([known, np.exp(start - fell)], axis=1)
    right = np.array([*(run[0].accuracy for run in runs), *(one.accuracy for _, one in rounds)])
    counts = np.array([_START] * len(runs) + [1.0] * len(rounds))
    found = _sigmoid(measured, right, counts, np.exp(later))
    low, high = np.quantile(found[1:], [0.025, 0.975], axis=0)
    return [
        {"value": float(value), "ci95": [float(one), float(other)], "n": len(rounds)}
        for value, one, other in zip(found[0], low, high, strict=True)
    ]


def _curve(spent: Floats, fell: Floats) -> tuple[Floats, Floats]:
    """c and a of each row of `fell`, (draws, rounds), by how much log L fell after so many answers `spent`,
    (rounds,)."""
    scales = spent.min() * _SCALES
    steps = np.log1p(spent / scales[:, None])  # (scales, rounds)
    power = np.maximum(fell @ steps.T / (steps**2).sum(1), 0)  # (draws, scales)
    missed = ((fell[:, None, :] - power[:, :, None] * steps) ** 2).sum(-1)
    best = missed.argmin(1)
    return scales[best], power[np.arange(len(best)), best]


def _sigmoid(nll: Floats, accuracy: Floats, counts: Floats, wanted: Floats) -> Floats:
    """The accuracy at `wanted`, (draws, N), by a line through the log-odds of `accuracy`, (points,), over `nll`,
    (draws, points); `counts`: the weight of each point. It never rises with L."""
    odds = np.log(np.clip(accuracy, 1e-3, 1 - 1e-3) / (1 - np.clip(accuracy, 1e-3, 1 - 1e-3)))
    weights = counts / counts.sum()
    middle, level = (nll @ weights)[:, None], odds @ weights
    apart = nll - middle
    slope = np.minimum((apart * (odds - level)) @ weights / np.maximum(apart**2 @ weights, 1e-12), 0)
    return 1 / (1 + np.exp(-(level + slope[:, None] * (wanted - middle))))
