"""Near-duplicates: rows that share most of their word n-grams with one that is kept already."""

from __future__ import annotations

from array import array
from typing import Any, Literal

import numpy as np
from pydantic import Field

from posttrain.data.words import Ints
from posttrain.filters.base import AcrossRounds, Decide, FilterContext, Verdict
from posttrain.filters.minhash import Bands, among, band_keys, band_size
from posttrain.filters.rows import Rows
from posttrain.filters.shingles import Sets, jaccard, offsets, ragged, shingles

SKETCH = 1024  # hashes held of a row: a longer one is compared by its smallest
_AT_ONCE = 4096  # pairs that are compared in one go


class NearDuplicates(AcrossRounds):
    """Keeps the first of rows that are nearly the same: whose sets of word n-grams are alike to `threshold` (Jaccard).

    Figure: the similarity to the kept row that decided. Which rows to compare is told by MinHash (Broder 1997; rensa's
    signatures) in bands so small that at most 2 % of the pairs just at the threshold are overlooked, fewer above it;
    these are then compared n-gram by n-gram, so that nothing less similar is ever dropped (of rows with more than 1,024
    n-grams an estimate decides, with a standard error below 0.016). State: 8 bytes a kept row and band, 4 an n-gram.
    Does not see: the same thought in other words; a duplicate in a band that more than 32 kept rows share.
    """

    use: Literal["near-duplicates"] = "near-duplicates"
    of: Literal["both", "prompt", "answer"] = Field(
        default="both",
        description="what is compared: prompt and answer as one text, or one of the two. `prompt` keeps one row of a "
        "prompt, `answer` drops equal answers to different prompts",
    )
    threshold: float = Field(default=0.8, gt=0, le=1, description="Jaccard similarity from which a row is dropped")
    n: int = Field(default=3, ge=1, le=10_000, description="words in an n-gram")
    num_perm: int = Field(default=128, ge=16, le=1024, description="slots of a MinHash signature")

    def start(self, context: FilterContext) -> Decide:
        kept = _Kept(self.threshold, self.num_perm)
        for rows in self.earlier(context):
            kept.add(self._sets(rows))
        earlier = len(kept)

        def decide(rows: Rows) -> dict[int, Verdict]:
            return {
                row: Verdict("near duplicate" if other >= earlier else "near duplicate of an earlier round", figure)
                for row, (other, figure) in kept.drop_similar(self._sets(rows)).items()
            }

        return decide

    def _sets(self, rows: Rows) -> Sets:
        if self.of == "both":
            texts = [f"{prompt}\n{answer}" for prompt, answer in zip(rows.prompts, rows.answers, strict=True)]
        else:
            texts = rows.prompts if self.of == "prompt" else rows.answers
        return shingles(texts, self.n, SKETCH)


class _Kept:
    """The n-grams of the rows that were kept, and an index of their bands."""

    def __init__(self, threshold: float, num_perm: int) -> None:
        self.threshold, self.num_perm = threshold, num_perm
        self.size = band_size(threshold, num_perm)
        self.bands = Bands()
        self._grams, self._ends = array("I"), array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, sets: Sets) -> None:
        """Rows to compare later ones with, whether or not they are alike themselves."""
        nonempty = np.flatnonzero(sets.sizes)
        if len(nonempty):
            self._add(sets.take(nonempty), band_keys(sets.take(nonempty), self.size, self.num_perm))

    def drop_similar(self, sets: Sets) -> dict[int, tuple[int, float]]:
        """The rows that are near-duplicates: of which kept row, and how similar. The others are kept."""
        nonempty = np.flatnonzero(sets.sizes)  # a text without a word is like nothing
        if not len(nonempty):
            return {}
        sets = sets.take(nonempty)
        keys = band_keys(sets, self.size, self.num_perm)
        found: dict[int, tuple[int, float]] = {}
        for row, other, figure in self._alike(sets, self, *self.bands.candidates(keys)):
            found.setdefault(row, (other, figure))
        rest = np.array([row for row in range(len(sets)) if row not in found], np.int64)
        first = len(self)  # the number of the first row that is kept of these
        place = dict[int, int]()
        pairs: dict[int, list[tuple[int, float]]] = {}
        for row, other, figure in self._alike(sets.take(rest), sets.take(rest), *among(keys[rest])):
            pairs.setdefault(row, []).append((other, figure))
        kept = []
        for row in range(len(rest)):
            like = next(((place[other], figure) for other, figure in pairs.get(row, ()) if other in place), None)
            if like is None:
                place[row] = first + len(kept)
                kept.append(rest[row])
            else:
                found[int(rest[row])] = like
        remain = np.array(kept, np.int64)
        self._add(sets.take(remain), keys[remain])
        return {int(nonempty[row]): verdict for row, verdict in found.items()}

    def _add(self, sets: Sets, keys: Any) -> None:
        self.bands.add(keys, np.arange(len(self), len(self) + len(sets)))
        last = self._ends[-1]
        self._grams.frombytes(sets.values.tobytes())
        self._ends.frombytes((sets.offsets[1:] + last).tobytes())

    def take(self, rows: Ints) -> Sets:
        ends, grams = np.frombuffer(self._ends, np.int64), np.frombuffer(self._grams, np.uint32)
        sizes = ends[rows + 1] - ends[rows]
        return Sets(grams[ragged(ends[rows], sizes)], offsets(sizes))

    def _alike(self, sets: Sets, others: Any, rows: Ints, candidates: Ints) -> list[tuple[int, int, float]]:
        """Of these pairs those that reach the threshold, and their similarity."""
        found = []
        for start in range(0, len(rows), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            likeness = jaccard(sets.take(rows[part]), others.take(candidates[part]), SKETCH)
            for at in np.flatnonzero(likeness >= self.threshold):
                found.append((int(rows[part][at]), int(candidates[part][at]), float(likeness[at])))
        return found
