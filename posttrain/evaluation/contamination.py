"""Contamination: which words of a benchmark stand in n-grams that training data have too (Llama 3, 5.1.4). Pure.

The n-grams of the questions are kept, and training rows stream past them, so memory grows with the benchmark alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.data.words import U64, Ints, words
from posttrain.evaluation.statistics import Figure

Floats = npt.NDArray[np.float64]

_ODD = np.uint64(0x9E3779B97F4A7C15)
THRESHOLDS = tuple(at / 20 for at in range(1, 20))  # shares above which a question may count as contaminated
_FEWEST = 10  # questions on either side of a threshold
_DRAWS, _AT_ONCE = 2000, 100


class Questions:
    """The n-grams of a benchmark's questions, and which of them were seen so far.

    texts: one a question. A question of fewer than `n` words is one n-gram of all its words.
    """

    def __init__(self, texts: Sequence[str], n: int) -> None:
        hashes, self.rows = words(texts)
        self.counts = np.bincount(self.rows, minlength=len(texts))
        first, size = _places(self.rows, self.counts, n)
        grams = _grams(hashes, first, size)
        self.first, self.size = first, size
        self.known, self.of = np.unique(grams, return_inverse=True)
        self.seen = np.zeros(len(self.known), bool)

    def look(self, texts: Sequence[str]) -> None:
        """Notes which n-grams these texts have."""
        if not len(self.known):
            return
        hashes, rows = words(texts)
        for size in np.unique(self.size):
            first = _runs(rows, int(size))
            self._note(_grams(hashes, first, np.full(len(first), size)))

    def _note(self, grams: U64) -> None:
        at = np.searchsorted(self.known, grams)
        at[at == len(self.known)] = 0
        self.seen[at[self.known[at] == grams]] = True

    def shares(self) -> Floats:
        """Of each question, the share of its words that stand in an n-gram that was seen; 0 for one without words."""
        covered = np.zeros(len(self.rows) + 1, np.int64)
        found = self.seen[self.of]
        np.add.at(covered, self.first[found], 1)
        np.add.at(covered, self.first[found] + self.size[found], -1)
        inside = covered.cumsum()[:-1] > 0
        return np.bincount(self.rows[inside], minlength=len(self.counts)) / np.maximum(self.counts, 1)


def _runs(rows: Ints, size: int) -> Ints:
    """Where `size` words of one text begin that follow one another."""
    if len(rows) < size:
        return np.zeros(0, np.int64)
    return np.flatnonzero(rows[: len(rows) - size + 1] == rows[size - 1 :])


def _places(rows: Ints, counts: Ints, n: int) -> tuple[Ints, Ints]:
    """Where each n-gram begins, and how many words it has."""
    starts = np.cumsum(counts) - counts
    short = (counts > 0) & (counts < n)
    long = _runs(rows, n)
    return np.concatenate([long, starts[short]]), np.concatenate([np.full(len(long), n, np.int64), counts[short]])


def _grams(hashes: U64, first: Ints, size: Ints) -> U64:
    """A 64-bit hash of each n-gram; its words' order and number count."""
    made = size.astype(np.uint64) * _ODD
    for step in range(int(size.max(initial=0))):
        longer = size > step
        mixed = (made[longer] ^ hashes[first[longer] + step]) * _ODD
        made[longer] = mixed ^ (mixed >> np.uint64(29))
    return made


def gain(shares: Sequence[float] | Floats, scores: Sequence[float] | Floats, seed: int = 0) -> dict[str, Any]:
    """What contamination may have added to a benchmark's score.

    shares, scores: of each question, the share of its words that was seen and what the policy got for it.

    A question counts as contaminated above a threshold, which is chosen for each benchmark, as in the paper: the one
    with the largest gain among those that show one, else the clearest. The gain is the mean score of contaminated
    questions minus that of clean ones. As the threshold is chosen by the scores, the interval holds for all thresholds
    at once (studentised bootstrap of the largest deviation, 2,000 draws).

    Returns `threshold`, `contaminated` (a share of the questions), `gain` (a Figure) and `clean`, the mean score of
    clean questions; with `threshold` None where no threshold leaves ten questions on either side.
    """
    share, score = np.asarray(shares, np.float64), np.asarray(scores, np.float64)
    scale = max(1.0, float(np.ptp(score))) if len(score) else 1.0  # of scores that are not shares
    score = score / scale
    sides = [(t, share > t) for t in THRESHOLDS]
    sides = [(t, above) for t, above in sides if _FEWEST <= above.sum() <= len(share) - _FEWEST]
    if not sides:
        none: Figure = {"value": None, "ci95": None, "n": len(share)}
        return {"threshold": None, "contaminated": float((share > 0.5).mean()) if len(share) else 0.0, "gain": none}
    above = np.stack([side for _, side in sides], axis=1).astype(np.float64)
    difference, error = (each[0] for each in _difference(above, score, np.ones((1, len(score)))))
    critical = _critical(above, score, difference, seed)
    shown = difference - critical * error > 0
    best = int(np.argmax(np.where(shown, difference, -np.inf))) if shown.any() else int(np.argmax(difference / error))
    value, half = float(difference[best]) * scale, float(critical * error[best]) * scale
    return {
        "threshold": sides[best][0],
        "contaminated": float(above[:, best].mean()),
        "gain": {"value": value, "ci95": [value - half, value + half], "n": len(share)},
        "clean": float(score[above[:, best] == 0].mean()) * scale,
    }


def _difference(above: Floats, score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """For each draw and threshold the difference of means and its standard error, both (draws, T).

    above: (N, T) of 0 and 1; score: (N,); weights: (draws, N), how often each question counts.
    """
    means, variances = [], []
    for side in (above, 1 - above):
        count = np.maximum(weights @ side, 1)
        mean, square = ((weights * value) @ side / count for value in (score, score**2))
        # As if one question more were half right: where all of a side are alike the error would be 0.
        variances.append((np.maximum(square - mean**2, 0) * count + 0.25) / count**2)
        means.append(mean)
    return means[0] - means[1], np.sqrt(variances[0] + variances[1])


def _critical(above: Floats, score: Floats, difference: Floats, seed: int) -> float:
    """How many standard errors the worst of all thresholds deviates by in 95 % of the draws; 1.96 at least."""
    random, count, worst = np.random.default_rng(seed), len(score), list[Floats]()
    for _ in range(_DRAWS // _AT_ONCE):
        weights = random.multinomial(count, np.full(count, 1 / count), size=_AT_ONCE).astype(np.float64)
        drawn, error = _difference(above, score, weights)
        worst.append(np.max(np.abs(drawn - difference) / error, axis=1))
    return max(1.96, float(np.quantile(np.concatenate(worst), 0.95)))
