"""Locality-sensitive hashing: which rows may be alike, without comparing each with each. Flat arrays, no objects."""

from __future__ import annotations

import numpy as np
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  # compiled, without stubs

from posttrain.data.words import U64, Ints
from posttrain.filters.shingles import ODD, Sets, mixed

MISSED = 0.02  # of the pairs that are just alike enough, no more than this share is overlooked
MOST = 32  # rows that are compared in each band with one that is asked about; the earliest

_LOW = np.uint64(0xFFFFFFFF)


def band_size(threshold: float, num_perm: int) -> int:
    """Signature slots in a band: as many as still find a pair of similarity `threshold` with a chance of 1 - MISSED.

    Two sets of similarity s share a band of r slots with probability s^r, and one of b bands with 1 - (1 - s^r)^b
    (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.2).
    """
    fitting = [r for r in range(1, num_perm + 1) if (1 - threshold**r) ** (num_perm // r) <= MISSED]
    return max(fitting, default=1)


def band_keys(sets: Sets, size: int, num_perm: int) -> U64:
    """[rows, bands], 32 bits each: rows that agree in a column share a band."""
    bands = num_perm // size
    spread = sets.values.astype(np.uint64) * ODD
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(spread, sets.offsets.astype(np.uint64), bands * size, 1)
    slots = np.array(matrix.to_rows(), np.uint64).reshape(len(sets), bands, size)
    return mixed(slots[:, :, slot] for slot in range(size))


class Bands:
    """The rows of each band's keys, to be asked for rows that share one. 8 bytes a row and band.

    Held as a few sorted runs of key and row in one number, each at least twice as long as the next: a row is moved
    log2(rows) times in all.
    """

    def __init__(self) -> None:
        self._runs: list[U64] = []  # [bands, rows] each, ascending in each band

    def add(self, keys: U64, rows: Ints) -> None:
        """`keys`: [rows, bands]; `rows`: their numbers, below 2^32."""
        if not len(rows):
            return
        self._runs.append(_run(keys, rows))
        while len(self._runs) > 1 and 2 * self._runs[-1].shape[1] > self._runs[-2].shape[1]:
            last = self._runs.pop()
            merged = np.concatenate([self._runs.pop(), last], axis=1)
            del last
            merged.sort(axis=1)
            self._runs.append(merged)

    def candidates(self, keys: U64) -> tuple[Ints, Ints]:
        """Pairs of a row of `keys`, by its place, and the number of a row that was added and shares a band with it."""
        return _distinct([pair for run in self._runs for pair in _sharing(run, keys)])


def among(keys: U64) -> tuple[Ints, Ints]:
    """Pairs of rows of `keys` that share a band, the later row first."""
    pairs = [] if not len(keys) else _sharing(_run(keys, np.arange(len(keys))), keys)
    return _distinct([(one[other < one], other[other < one]) for one, other in pairs])


def _run(keys: U64, rows: Ints) -> U64:
    return np.sort(keys.T << np.uint64(32) | rows.astype(np.uint64), axis=1)


def _sharing(run: U64, keys: U64) -> list[tuple[Ints, Ints]]:
    found = []
    for band, keys_of_band in zip(run, keys.T, strict=True):
        at = np.searchsorted(band, keys_of_band << np.uint64(32))
        rows = np.arange(len(keys_of_band))
        for _ in range(MOST):
            inside = at < len(band)
            rows, at = rows[inside], at[inside]
            same = band[at] >> np.uint64(32) == keys_of_band[rows]
            rows, at = rows[same], at[same]
            if not len(rows):
                break
            found.append((rows, (band[at] & _LOW).astype(np.int64)))
            at = at + 1
    return found


def _distinct(pairs: list[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    both = np.concatenate([one.astype(np.uint64) << np.uint64(32) | other.astype(np.uint64) for one, other in pairs])
    both = np.unique(both)
    return (both >> np.uint64(32)).astype(np.int64), (both & _LOW).astype(np.int64)
