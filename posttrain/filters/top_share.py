"""Which rows have the best rewards: normalised by prompt and round, so that no two reward models' scales are compared.

    z = (r − m) / s

r: the row's `score`. m: the mean score of the prompt's rows in its round; where the prompt has one row alone, the mean
of its round. s: the root of the mean of (r − m)² over all rows of the round. A row without a score counts nowhere.

Llama 3 (section 4.2.3) takes the top quartile of the reward model's scores; the normalisation is ours: without it easy
prompts fill the quartile, and rounds whose reward models differ cannot stand in one table.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable, Iterator

import numpy as np
import pyarrow as pa

from posttrain.filters.base import Corpus
from posttrain.filters.rows import Rows

_TINY = 1e-9  # of the scores' own size: differences below are rounding


class TopShare:
    """The round's measures, from one pass over the columns prompt_id (or prompt), score and round of the whole corpus.

    State: 24 bytes a row while it is read, then a number a prompt and two a round. Raises DataError where there is no
    column of scores, or it holds no numbers.
    """

    def __init__(self, share: float, corpus: Corpus) -> None:
        self._centre: dict[int, float] = {}  # by hash of round and prompt
        self._round: dict[Hashable, tuple[float, float]] = {}  # s, and the least z of the best rows
        groups: dict[int, int] = {}
        rounds: dict[Hashable, int] = {}
        group_of, round_of, scores = array("l"), array("l"), array("d")
        for batch in _needed(corpus):
            rows = Rows(batch)
            for key, number, score in zip(_keys(rows), _rounds(rows), rows.numbers("score"), strict=True):
                if score is not None and math.isfinite(score):
                    group_of.append(groups.setdefault(key, len(groups)))
                    round_of.append(rounds.setdefault(number, len(rounds)))
                    scores.append(score)
        if not scores:
            return
        r, group, which = np.array(scores), np.array(group_of), np.array(round_of)
        single = np.bincount(group)[group] == 1
        mean = np.bincount(group, r) / np.bincount(group)
        m = np.where(single, (np.bincount(which, r) / np.bincount(which))[which], mean[group])
        for name, number in rounds.items():
            there = which == number
            self._round[name] = _measures(r[there] - m[there], float(np.abs(r[there]).max()), share)
        centres = np.empty(len(groups))
        centres[group] = m
        self._centre = dict(zip(groups, centres.tolist(), strict=True))

    def figures(self, rows: Rows) -> list[float | None]:
        """z of each row; None without a score."""
        return [
            (score - self._centre[key]) / self._round[number][0] if score is not None and math.isfinite(score) else None
            for key, number, score in zip(_keys(rows), _rounds(rows), rows.numbers("score"), strict=True)
        ]

    def among_the_best(self, rows: Rows) -> list[bool]:
        """Whether a row is one of the best `share` of its round; of equal z all are, where one is."""
        least = [self._round[number][1] if number in self._round else math.inf for number in _rounds(rows)]
        return [z is not None and z >= bound for z, bound in zip(self.figures(rows), least, strict=True)]


def _measures(deviations: np.ndarray, size: float, share: float) -> tuple[float, float]:
    """s, and the z from which on a row is among the best. Where all scores are alike (z = 0), all rows are."""
    s = float(np.sqrt(np.mean(deviations**2)))
    s = s if s > _TINY * max(size, 1.0) else math.inf
    best = max(1, math.ceil(share * len(deviations)))
    least = float(np.partition(deviations / s, len(deviations) - best)[len(deviations) - best])
    return s, least - _TINY


def _needed(corpus: Corpus) -> Iterator[pa.RecordBatch]:
    for batch in corpus(["prompt_id", "score", "round"]):
        if "prompt_id" not in batch.schema.names:
            return (yield from corpus(["prompt", "score", "round"]))
        yield batch


def _keys(rows: Rows) -> list[int]:
    return [hash((number, key)) for number, key in zip(_rounds(rows), rows.prompt_keys, strict=True)]


def _rounds(rows: Rows) -> list[Hashable]:
    return rows.column("round") if rows.has("round") else [None] * len(rows)
