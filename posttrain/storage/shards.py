"""Processes a fixed plan of shards in several processes; each finished shard is a file.

The plan depends on the rows alone, never on the number of processes, so the result is the same, bit by bit. A finished
shard is a Parquet file whose name contains the hash of its content: a truncated or changed one is detected when a stage
resumes, and made again like a missing one.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.errors import MissingShardsError
from posttrain.storage.part import Part
from posttrain.storage.pieces import Pieces, T
from posttrain.system import die_with_parent, give_back, gpus, one_thread_after_fork


def run_shards(
    work: Callable[[T], pa.Table],
    shards: Sequence[T],
    folder: Path,
    workers: int,
    progress: Callable[[int], None] = lambda rows: None,
    threads: int = 1,
    part: Part | None = None,
) -> list[Path]:
    """Applies `work` (picklable) to every shard and returns the files, in the plan's order. `threads`: use threads of
    this process instead of processes, for work that waits for I/O.

    `progress` gets the number of rows of each shard as it finishes, including shards that were finished before. `part`:
    those that are made here, where other processes make the others.

    Raises:
        MissingShardsError: some of the others are not there yet.
    """
    pieces = Pieces(folder)
    paths = {index: path for index in range(len(shards)) if (path := pieces.find(name_of(index)))}
    for path in paths.values():
        progress(pq.read_metadata(path).num_rows)
    missing = [index for index in range(len(shards)) if index not in paths and (part is None or part.has(index))]

    def done(index: int, path: Path, rows: int) -> None:
        paths[index] = path
        progress(rows)

    if len(missing) <= 1 or max(threads, workers) <= 1:
        for index in missing:
            done(index, *_do(work, shards[index], pieces, index))
        return _all(paths, pieces, len(shards))
    pool: Executor
    if threads > 1:
        pool = ThreadPoolExecutor(threads)
    else:  # a stage is a fresh process with the libraries imported and no thread of torch's yet: workers are forked
        context = multiprocessing.get_context("fork")
        free = context.SimpleQueue()
        for name in gpus():
            free.put(name)
        pool = ProcessPoolExecutor(min(workers, len(missing)), context, initializer=_begin, initargs=(free,))
    try:
        waiting = {pool.submit(_do, work, shards[index], pieces, index): index for index in missing}
        for future in as_completed(waiting):
            done(waiting[future], *future.result())
    finally:  # what is wrong with one shard is told before the others are done; a thread may wait for an answer
        pool.shutdown(wait=threads <= 1, cancel_futures=True)
    return _all(paths, pieces, len(shards))


def _all(paths: dict[int, Path], pieces: Pieces, count: int) -> list[Path]:
    """The files of so many shards, those included that others made meanwhile."""
    found = [paths.get(index) or pieces.find(name_of(index)) for index in range(count)]
    there = [path for path in found if path]
    if len(there) < count:
        missing = count - len(there)
        raise MissingShardsError(f"{missing} of {count} shards in {pieces.folder} are not made yet", missing)
    return there


def _begin(free: SimpleQueue[str]) -> None:
    """Begins a worker: with a GPU of its own, where there are any."""
    die_with_parent()
    one_thread_after_fork()
    if not free.empty():
        os.environ["CUDA_VISIBLE_DEVICES"] = free.get()


def processes(workers: int) -> int:
    """The processes for sharded work: one for each GPU, which one process keeps busy; without any `workers`."""
    return len(gpus()) or workers


def name_of(index: int) -> str:
    """The name of a shard's piece."""
    return f"shard-{index:05d}"


def _do(work: Callable[[T], pa.Table], shard: T, pieces: Pieces, index: int) -> tuple[Path, int]:
    table = work(shard)
    path, rows = pieces.keep(name_of(index), table), table.num_rows
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
