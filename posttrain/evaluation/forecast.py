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
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from posttrain.evaluation.statistics import Figure

ROUND = 0.016  # standard deviation of log L by which a round is off the curve by chance
_DRAWN = 1.2 * ROUND  # it in fits to points that chance has moved already, which alone would be too sure
# Standard deviation of how much faster or slower the log-odds of the accuracy go on than the curves say, for each
# factor e of answers beyond the measured ones. Set, as `ROUND`, by six runs of three recipes: docs/evaluation.md.
_DRIFT = 0.08
FEWEST = 2  # rounds that a forecast needs, besides the starting model
_DRAWS = 2000
# Of c, in parts of the answers of the first round. No larger: each later round brings less than the first.
_SCALES = np.logspace(-3, math.log10(0.3), 51)
_START = 0.3  # how much the starting model counts beside a round as the sigmoid is fitted: it may make other mistakes
_LEAST = 1e-3  # share of right answers below which L is not followed

Floats = npt.NDArray[np.float64]


class Point(NamedTuple):
    """A policy that was measured. `spent`: answers sampled to learn from until then; `nll`: the mean of `normalised`
    over prompts; `accuracy`: pass@1, as a share, of so many `heldout_answers`; `within`: the share of its variance p(1
    − p) that lies within prompts, of which alone is what chance does on the same prompts."""

    spent: float
    nll: float
    accuracy: float
    heldout_answers: float = math.inf
    within: float = 1.0

    def odds(self) -> float:
        """The log-odds of the accuracy. With half an answer more on either side they are finite."""
        if math.isinf(self.heldout_answers):
            share = min(max(self.accuracy, 1e-3), 1 - 1e-3)
            return math.log(share / (1 - share))
        right = self.accuracy * self.heldout_answers
        return math.log((right + 0.5) / (self.heldout_answers - right + 0.5))

    def error(self) -> float:
        """The standard deviation of these log-odds by the chance of what was sampled."""
        return float(_error(np.array(self.odds()), self.heldout_answers, self.within))


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


@dataclass(frozen=True)
class _Model:
    """What was measured of one starting model: in `runs` runs `rounds` rounds."""

    spent: Floats  # (rounds,)
    fell: Floats  # (rounds,), by how much log L fell
    starts: Floats  # (runs,), L of the starting model
    odds: Floats  # (runs + rounds,), log-odds of the accuracy
    errors: Floats  # (runs + rounds,), their standard deviation by the chance of what was sampled
    weights: Floats  # (runs + rounds,)

    @classmethod
    def of(cls, runs: Sequence[Sequence[Point]]) -> _Model:
        rounds = [(run[0], one) for run in runs for one in run[1:] if one.spent > 0]
        measured = [*(run[0] for run in runs), *(one for _, one in rounds)]
        return cls(
            np.array([one.spent for _, one in rounds]),
            np.array([math.log(first.nll / one.nll) for first, one in rounds]),
            np.array([run[0].nll for run in runs]),
            np.array([one.odds() for one in measured]),
            np.array([one.error() for one in measured]),
            np.array([_START] * len(runs) + [1.0] * len(rounds)),
        )

    @property
    def start(self) -> float:
        """log L of the starting model, the mean over runs."""
        return float(np.log(self.starts).mean())


def forecast(
    runs: Sequence[Sequence[Point]],
    wanted: Sequence[float],
    seed: int = 0,
    others: Sequence[Sequence[Point]] = (),
    heldout_answers: float = math.inf,
) -> list[Figure] | None:
    """The accuracy after so many answers to learn from, with 95 % intervals of it as a round would measure it with so
    many `heldout_answers` on the same prompts.

    runs: of each its starting model, at 0 answers, and its first rounds; all of one starting model. `others`: those of
    other starting models, such as smaller ones. c and v are taken to be the same for all models, and later rounds show
    them best; a and u are each model's own. The curves are fitted by least squares. The interval is of 2,000 fits to
    points that chance moves, see `ROUND` and `Point.error`, each of which goes on a little faster or slower than its
    curves, see `_DRIFT`. None with fewer than two rounds of the model itself, or where none is better than the start.
    Of `others`, a run in which nothing is wrong any more (L is 0) says nothing.
    """
    if not all(one.nll > 0 for run in runs for one in run):
        return None
    whole = [run for run in others if all(one.nll > 0 for one in run)]
    own, *smaller = (_Model.of(each) for each in (runs, *([run] for run in whole)))
    if len(own.spent) < FEWEST:
        return None
    models = [own, *(model for model in smaller if len(model.spent) >= FEWEST)]
    random = np.random.default_rng(seed)
    fell = [model.fell + _chance(random, len(model.fell)) for model in models]
    scale, power = _curve(models, fell)
    if not power[0]:
        return None
    spent = np.asarray(wanted, np.float64)
    later = own.start - power[:, None] * np.log1p(spent / scale[:, None])
    right = [model.odds + _chance(random, len(model.odds), model.errors) for model in models]
    slope, odds = _sigmoid(models, fell, right, np.exp(later + _chance(random, len(spent))))
    if not slope[0]:
        return None
    odds = odds + _chance(random, len(spent)) / _DRAWN * _error(odds, heldout_answers, runs[-1][-1].within)
    beyond = np.log(np.maximum(spent / own.spent.max(), 1))
    drift = random.normal(0, _DRIFT, (len(odds), 1))
    drift[0] = 0
    found = 1 / (1 + np.exp(-(odds + drift * beyond)))
    low, high = np.quantile(found[1:], [0.025, 0.975], axis=0)
    return [
        {"value": float(value), "ci95": [float(one), float(other)], "n": len(own.spent)}
        for value, one, other in zip(found[0], low, high, strict=True)
    ]


def _error(odds: Floats, answers: float, within: float) -> Floats:
    """The standard deviation of log-odds by the chance of so many answers: √(within / (n p (1 − p)))."""
    share = np.clip(1 / (1 + np.exp(-odds)), 0.5 / (answers + 1), 1 - 0.5 / (answers + 1))
    return np.sqrt(within / (answers * share * (1 - share)))


def _chance(random: np.random.Generator, rounds: int, deviation: float | Floats = _DRAWN) -> Floats:
    """How far chance moves a value of so many rounds, (1 + draws, rounds). The first row is zero: the fit itself."""
    moved = random.normal(0, deviation, (1 + _DRAWS, rounds))
    moved[0] = 0
    return moved


def _curve(models: Sequence[_Model], fell: Sequence[Floats]) -> tuple[Floats, Floats]:
    """c of each draw, and a of the first model. `fell`: by how much log L fell in each model's rounds, (draws,
    rounds)."""
    scales = models[0].spent.min() * _SCALES
    powers, missed = list[Floats](), np.zeros((len(fell[0]), len(scales)))
    for model, each in zip(models, fell, strict=True):
        steps = np.log1p(model.spent / scales[:, None])  # (scales, rounds)
        power = np.maximum(each @ steps.T / (steps**2).sum(1), 0)  # (draws, scales)
        missed += ((each[:, None, :] - power[:, :, None] * steps) ** 2).sum(-1)
        powers.append(power)
    best = missed.argmin(1)
    return scales[best], powers[0][np.arange(len(best)), best]


def _sigmoid(
    models: Sequence[_Model], fell: Sequence[Floats], right: Sequence[Floats], wanted: Floats
) -> tuple[Floats, Floats]:
    """Lines of one slope through the log-odds of each model's accuracies, `right`, over L, which never rise with it:
    the slopes, (draws,), and where the first model's L is `wanted` its log-odds, (draws, N)."""
    middles, levels = list[Floats](), list[Floats]()
    shared, spread = np.zeros(len(wanted)), np.zeros(len(wanted))
    for model, each, odds in zip(models, fell, right, strict=True):
        nll = np.concatenate([model.starts[None].repeat(len(each), 0), np.exp(model.start - each)], axis=1)
        share = model.weights / model.weights.sum()
        middle, level = (nll @ share)[:, None], (odds @ share)[:, None]
        apart = nll - middle
        shared += (apart * (odds - level)) @ model.weights
        spread += apart**2 @ model.weights
        middles.append(middle)
        levels.append(level)
    slope = np.minimum(shared / np.maximum(spread, 1e-12), 0)
    return slope, levels[0] + slope[:, None] * (wanted - middles[0])
