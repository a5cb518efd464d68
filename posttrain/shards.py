"""A fixed plan of shards, worked off by several processes, each shard kept as a file of its own.

The plan depends on the rows alone, never on how many processes there are: the same plan gives the same bits.
A finished shard is a Parquet file whose name holds the hash of its content, so that one that was cut or changed since
is seen when a stage resumes, and done again like those that are missing.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.store import file_hash, fsync
from posttrain.system import die_with_parent, give_back

T = TypeVar("T")
_DIGITS = 32  # of a SHA-256, in a name: 128 bits


def cut(rows: Sequence[T], size: int) -> list[Sequence[T]]:
    """Consecutive slices of `size` rows."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def even(count: int, most: int) -> int:
    """The size of even pieces, of at most `most`: processes that take them in turn end together."""
    return math.ceil(count / math.ceil(count / most)) if count else most


class Pieces:
    """The finished pieces of a stage's work, by name: what it resumes from after a kill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, name: str) -> Path | None:
        """The piece's file, if it is as it was written. One that is not is removed."""
        for path in sorted(self.folder.glob(f"{name}.*.parquet")):
            if is_whole(path):
                return path
            path.unlink()
        return None

    def made(self, name: str, make: Callable[[], pa.Table]) -> pa.Table:
        """The piece as it was found, or as it is made now and kept."""
        return pq.read_table(self.find(name) or self.keep(name, make()))

    def read(self, name: str) -> pa.Table | None:
        path = self.find(name)
        return pq.read_table(path) if path else None

    def keep(self, name: str, table: pa.Table) -> Path:
        """Write the piece so that a kill, or a machine that goes down, leaves it whole or absent."""
        part = self.folder / f".{name}.part"
        pq.write_table(table, part, compression="zstd")
        fsync(part)
        path = self.folder / f"{name}.{file_hash(part)[:_DIGITS]}.parquet"
        part.rename(path)
        return path


def is_whole(path: Path) -> bool:
    """Whether a piece is as it was written. Tables of a stage that carry no hash are made anew from pieces."""
    parts = path.name.split(".")
    return len(parts) != 3 or file_hash(path)[:_DIGITS] == parts[1]


def run_shards(
    work: Callable[[T], pa.Table],
    shards: Sequence[T],
    folder: Path,
    workers: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[Path]:
    """Apply `work` (picklable) to every shard and return the files, in the plan's order.

    `progress` gets the number of rows of each shard as it finishes, those found finished included.
    """
    pieces = Pieces(folder)
    paths = {index: path for index in range(len(shards)) if (path := pieces.find(_name(index)))}
    for path in paths.values():
        progress(pq.read_metadata(path).num_rows)
    missing = [index for index in range(len(shards)) if index not in paths]

    def done(index: int, path: Path, rows: int) -> None:
        paths[index] = path
        progress(rows)

    if workers <= 1 or len(missing) <= 1:
        for index in missing:
            done(index, *_do(work, shards[index], pieces, index))
        return [paths[index] for index in range(len(shards))]
    # A stage is a fresh process with the libraries imported and no thread of torch's yet: workers are forked from it.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(workers, len(missing)), context, initializer=_start_worker) as pool:
        waiting = {pool.submit(_do, work, shards[index], pieces, index): index for index in missing}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    done(waiting.pop(future), *future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what is wrong with one shard is told before the others are done
            raise
    return [paths[index] for index in range(len(shards))]


def _name(index: int) -> str:
    return f"shard-{index:05d}"


def _start_worker() -> None:
    die_with_parent()


def _do(work: Callable[[T], pa.Table], shard: T, pieces: Pieces, index: int) -> tuple[Path, int]:
    table = work(shard)
    path, rows = pieces.keep(_name(index), table), table.num_rows
    del table
    give_back()
    return path, rows


def concatenate(paths: Sequence[Path], target: Path) -> int:
    """Join Parquet files into one, one row group in memory at a time. Returns the number of rows."""
    part = target.with_name(f".{target.name}.part")
    rows = 0
    writer: pq.ParquetWriter | None = None
    for path in paths:
        file = pq.ParquetFile(path)
        writer = writer or pq.ParquetWriter(part, file.schema_arrow, compression="zstd")
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            writer.write_table(table.cast(writer.schema))
            rows += table.num_rows
    if writer is None:
        raise ValueError("no shards to join")
    writer.close()
    part.rename(target)
    return rows
