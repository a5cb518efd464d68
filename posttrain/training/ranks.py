"""One training in several processes, its ranks.

On one machine they are forked from the stage, which has read the rows and imported the libraries. Where torchrun has
started the stage, on one machine or many, its process is a rank already.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import distributed, multiprocessing

from posttrain.errors import LostRankError, StageCrashedError, portable
from posttrain.storage.files import keep_first
from posttrain.storage.pieces import Pieces
from posttrain.system import SMALL_MODEL, cores, die_with_parent, one_thread_after_fork

T = TypeVar("T")

_GRACE = 2.0  # seconds for the other ranks to end by themselves once one has failed


class OtherRank(Exception):
    """Where torchrun has started the stage: this process has trained, and what follows is done by rank 0."""


def world() -> int:
    """The processes that train together with this one, itself included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def use_cores(model: torch.nn.Module) -> None:
    """Lets the ranks of this machine compute on all of its cores, if the model is large enough for that."""
    if sum(weight.numel() for weight in model.parameters()) > SMALL_MODEL:
        torch.set_num_threads(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def barrier() -> None:
    """Waits until every rank is here."""
    if distributed.is_initialized():
        distributed.barrier()


def of_first(value: T) -> T:
    """What rank 0 says, on every rank."""
    said = [value]
    if distributed.is_initialized():
        distributed.broadcast_object_list(said, src=0)
    return said[0]


def made_together(pieces: Pieces, name: str, make: Callable[[], pa.Table]) -> pa.Table:
    """As `Pieces.made`, where every rank takes part in making: rank 0 says whether the piece is there, and keeps it."""
    if world() == 1:
        return pieces.made(name, make)
    found = of_first(pieces.find(name) if rank() == 0 else None)
    if found:
        return pq.read_table(found)
    table = make()
    if rank() == 0:
        pieces.keep(name, table)
    return table


def in_ranks(work: Callable[[], T], processes: int) -> T:
    """What `work` returns on rank 0 of so many processes; in this one if it is one, or a rank itself.

    Raises:
        OtherRank: this is a rank itself, and not the first.
        StageCrashedError: a rank was killed; LostRankError where this is one itself.
        Exception: what the first rank that failed raised.
    """
    if world() > 1:
        made = _with_others(work)
        if rank() > 0:
            raise OtherRank
        return made
    if processes == 1:
        return work()
    with tempfile.TemporaryDirectory(prefix="posttrain-ranks-") as name:
        folder = Path(name)
        ranks: Any = multiprocessing.start_processes(
            _rank, (processes, work, folder), processes, join=False, start_method="fork"
        )
        try:
            while not ranks.join(grace_period=_GRACE):
                pass
        except multiprocessing.ProcessExitedException as error:
            how = f"was killed by {error.signal_name}" if error.signal_name else f"ended with code {error.exit_code}"
            raise StageCrashedError(f"rank {error.error_index} of {processes} {how}") from None
        except multiprocessing.ProcessRaisedException:
            raise pickle.loads((folder / "error").read_bytes()) from None
        return pickle.loads((folder / "made").read_bytes())


def _rank(number: int, processes: int, work: Callable[[], object], folder: Path) -> None:
    """The work of a rank. They find one another by a file: no port that another process might have taken."""
    die_with_parent()
    one_thread_after_fork()
    there = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in there.items()})
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(number)
    distributed.init_process_group(
        "cuda:nccl,cpu:gloo" if gpus else "gloo", f"file://{folder}/store", rank=number, world_size=processes
    )
    try:
        made = _with_others(work)
    except Exception as error:
        keep_first(folder / "error", pickle.dumps(portable(error)))
        raise
    if number == 0:
        (folder / "made").write_bytes(pickle.dumps(made))
    distributed.destroy_process_group()


def _with_others(work: Callable[[], T]) -> T:
    """What `work` returns in this rank, once all have done theirs."""
    try:
        made = work()
        barrier()
    except Exception as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise LostRankError(f"rank {rank()} of {world()} lost another one: {error}") from error
        raise
    return made
