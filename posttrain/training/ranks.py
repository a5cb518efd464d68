"""One training in several processes, its ranks: those of torchrun, by the agent that torchrun itself starts.

On one machine the ranks are forked from the stage, which has read the rows and imported the libraries. Where a
scheduler has started torchrun on several machines, each process of the stage is a rank already.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from posttrain.errors import StageCrashedError
from posttrain.storage.pieces import Pieces
from posttrain.system import die_with_parent

T = TypeVar("T")


def world() -> int:
    """The processes that train together with this one, itself included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def barrier() -> None:
    """Waits until every rank is here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def made_together(pieces: Pieces, name: str, make: Callable[[], pa.Table]) -> pa.Table:
    """As `Pieces.made`, where every rank takes part in making: rank 0 says whether the piece is there, and keeps it."""
    if world() == 1:
        return pieces.made(name, make)
    found: list[str | None] = [str(path) if rank() == 0 and (path := pieces.find(name)) else None]
    torch.distributed.broadcast_object_list(found, src=0)
    if found[0]:
        return pq.read_table(found[0])
    table = make()
    if rank() == 0:
        pieces.keep(name, table)
    return table


def in_ranks(work: Callable[[], T], processes: int) -> T:
    """What `work` returns on rank 0 of so many processes; in this one if it is one, or a rank itself.

    Raises:
        StageCrashedError: a rank was killed.
        Exception: what the first rank that failed raised.
    """
    if processes == 1 or world() > 1:
        return work()
    with tempfile.TemporaryDirectory(prefix="posttrain-ranks-") as folder:
        raised = Path(folder) / "error"
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=Path(folder).name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,  # retries are those of every stage
            start_method="fork",
        )
        try:
            return elastic_launch(config, _rank)(work, raised)[0]
        except ChildFailedError as error:
            number, first = min(error.failures.items(), key=lambda failure: failure[1].timestamp)
            if first.exitcode < 0:
                by = signal.Signals(-first.exitcode).name
                raise StageCrashedError(f"rank {number} of {processes} was killed by {by}") from None
            raise pickle.loads(raised.read_bytes()) from None


def _rank(work: Callable[[], T], raised: Path) -> T | None:
    die_with_parent()
    try:
        made = work()
        barrier()
        return made if rank() == 0 else None
    except Exception as error:
        _write_first(raised, error)
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _write_first(raised: Path, error: Exception) -> None:
    """Keeps the error of the rank that failed first: the others then fail for want of it."""
    if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
        error = StageCrashedError(f"rank {rank()} of {world()} lost the others: {error}")
    part = raised.with_name(f"error.{os.getpid()}")
    try:
        part.write_bytes(pickle.dumps(error))
        pickle.loads(part.read_bytes())
    except Exception:
        part.write_bytes(pickle.dumps(StageCrashedError(f"{type(error).__name__}: {error}")))
    with contextlib.suppress(FileExistsError):
        os.link(part, raised)
