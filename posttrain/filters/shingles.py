"""Texts as sets of word n-grams, hashed to 32 bits, to find near-duplicates. No Python loop over words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from posttrain.data.words import U64, Ints, words

U32 = npt.NDArray[np.uint32]

ODD = np.uint64(0x9E3779B97F4A7C15)


class Sets(NamedTuple):
    """Sets of whole numbers, one below the other: that of row i is `values[offsets[i]:offsets[i + 1]]`, ascending."""

    values: U32
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Ints:
        return np.diff(self.offsets)

    def take(self, rows: Ints) -> Sets:
        sizes = self.sizes[rows]
        return Sets(self.values[ragged(self.offsets[rows], sizes)], offsets(sizes))


def offsets(sizes: Ints) -> Ints:
    """Where parts of these sizes begin, and where the last ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def ragged(starts: Ints, sizes: Ints) -> Ints:
    """The indices of `sizes[i]` values from `starts[i]` on, for each i, one after the other."""
    ends = np.cumsum(sizes, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - sizes), sizes)


def shingles(texts: Sequence[str], n: int, most: int) -> Sets:
    """The set of n-grams of each text's words, by their 32-bit hashes; of more than `most`, the smallest `most`.

    Case, white space and punctuation around a word are not compared. A text of fewer than `n` words is one n-gram of
    all its words; one without a word has none. Two different n-grams share a hash with a chance of 2^-32.
    """
    hashes, rows = words(texts)
    counts = np.bincount(rows, minlength=len(texts))
    starts = offsets(counts)[:-1]
    at = [np.flatnonzero(rows[: len(rows) - n + 1] == rows[n - 1 :])]
    at += [starts[counts == size] for size in range(1, n)]
    grams = [
        mixed(hashes[first + step] for step in range(size)) for first, size in zip(at, (n, *range(1, n)), strict=True)
    ]
    # Row and hash in one number, so that one sort puts the sets in order.
    marked = [rows[first].astype(np.uint64) << np.uint64(32) | gram for first, gram in zip(at, grams, strict=True)]
    keys = np.sort(np.concatenate(marked))
    keys = keys[np.concatenate([np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]])]
    sizes = np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=len(texts))
    sets = Sets(keys.astype(np.uint32), offsets(sizes))
    if sizes.max(initial=0) <= most:
        return sets
    kept = np.minimum(sizes, most)
    return Sets(sets.values[ragged(sets.offsets[:-1], kept)], offsets(kept))


def mixed(columns: Iterable[U64]) -> U64:
    """A 32-bit hash of the values that stand at the same place of each column; their order counts."""
    made = np.zeros(1, np.uint64)
    for values in columns:
        made = (made ^ values) * ODD
        made ^= made >> np.uint64(29)
    return made >> np.uint64(32)


def jaccard(one: Sets, other: Sets, most: int) -> npt.NDArray[np.float64]:
    """The Jaccard similarity of the i-th set of each: shared values / values of either.

    Where a set was cut to its `most` smallest hashes, only hashes below the cut are compared: an unbiased estimate
    with a standard error below 0.5 / sqrt(most) (bottom-k sketches: Cohen and Kaplan 2007).
    """
    pair = [np.repeat(np.arange(len(sets), dtype=np.uint64), sets.sizes) for sets in (one, other)]
    values = [sets.values for sets in (one, other)]
    highest = np.full(len(one), np.iinfo(np.uint32).max, np.uint32)
    for sets in (one, other):
        cut = sets.sizes >= most
        highest[cut] = np.minimum(highest[cut], sets.values[sets.offsets[1:][cut] - 1])
    seen = [value <= highest[at] for value, at in zip(values, pair, strict=True)]
    keys = [at[s] << np.uint64(32) | value[s] for value, at, s in zip(values, pair, seen, strict=True)]
    together = np.sort(np.concatenate(keys))
    twice = together[1:][together[1:] == together[:-1]] >> np.uint64(32)
    shared = np.bincount(twice.astype(np.int64), minlength=len(one))
    sizes = np.bincount((together >> np.uint64(32)).astype(np.int64), minlength=len(one))
    return shared / np.maximum(sizes - shared, 1)
