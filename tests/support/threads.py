"""A stage that only says how many threads torch has in it, and in the processes that it makes for its shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from posttrain.storage.shards import run_shards


def say(folder: Path, workers: int, progress: Callable[[int, int, str], None]) -> None:
    """Writes `threads.txt`: of the stage, and of each of two shards."""
    paths = run_shards(_threads, [0, 1], folder / "shards", workers)
    counts = [torch.get_num_threads(), *(pq.read_table(path)["threads"][0].as_py() for path in paths)]
    (folder / "threads.txt").write_text(" ".join(map(str, counts)), encoding="utf-8")


def _threads(shard: int) -> pa.Table:
    return pa.table({"threads": [torch.get_num_threads()]})
