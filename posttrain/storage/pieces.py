"""Splits work into pieces, each kept as a file that is complete or absent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.storage.files import file_hash, fsync

T = TypeVar("T")

_DIGITS = 32  # of a SHA-256, in a name: 128 bits


def cut(rows: Sequence[T], size: int) -> list[Sequence[T]]:
    """Consecutive slices of `size` rows."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def even(count: int, most: int) -> int:
    """The size of equal pieces of at most `most` rows: processes that take them in turn finish together."""
    return math.ceil(count / math.ceil(count / most)) if count else most


def by_work(work: Sequence[float], most: float) -> list[slice]:
    """Consecutive slices, as few as can be of at most `most` work each (a row of more stands alone), and as even as so
    many can be."""
    low, high = 0.0, float(most)
    count = len(_filled(work, high))
    while high - low > 1e-3 * high:  # the least bound that gives no more of them
        middle = (low + high) / 2
        low, high = (low, middle) if len(_filled(work, middle)) <= count else (middle, high)
    return _filled(work, high)


def _filled(work: Sequence[float], most: float) -> list[slice]:
    """Slices that are filled one after the other."""
    slices, start, taken = [], 0, 0.0
    for row, one in enumerate(work):
        if row > start and taken + one > most:
            slices.append(slice(start, row))
            start, taken = row, 0.0
        taken += one
    return [*slices, slice(start, len(work))] if work else []


class Pieces:
    """The finished pieces of a stage's work, by name: it resumes from these after a kill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, name: str) -> Path | None:
        """The piece's file if its hash matches; a damaged one is removed."""
        for path in sorted(self.folder.glob(f"{name}.*.parquet")):
            if is_whole(path):
                return path
            path.unlink()
        return None

    def made(self, name: str, make: Callable[[], pa.Table]) -> pa.Table:
        """The table of the piece: read if it is there, else made by `make` and kept."""
        return pq.read_table(self.find(name) or self.keep(name, make()))

    def read(self, name: str) -> pa.Table | None:
        path = self.find(name)
        return pq.read_table(path) if path else None

    def keep(self, name: str, table: pa.Table) -> Path:
        """Writes the piece so that a kill or a power failure leaves it complete or absent."""
        part = self.folder / f".{name}.part"
        pq.write_table(table, part, compression="zstd")
        fsync(part)
        path = self.folder / f"{name}.{file_hash(part)[:_DIGITS]}.parquet"
        part.rename(path)
        return path


def is_whole(path: Path) -> bool:
    """Whether a piece's hash matches. Tables that carry no hash are made again from pieces."""
    parts = path.name.split(".")
    return len(parts) != 3 or file_hash(path)[:_DIGITS] == parts[1]
