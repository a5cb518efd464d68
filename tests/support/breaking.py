"""Stages that break on their way, in real processes: what `Forked(breaking.stage)` runs.

`scratch/break.json` of a stage says how (a name of `HOW`), after which step, and how often.
"""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain.execution import launcher


def killed() -> None:
    """As the kernel does where memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def out_of_memory() -> None:
    """The process may have little more than it has, and asks for all of that: torch's allocator fails for real."""
    import resource

    import torch

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (256 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    held = []
    while True:
        held.append(torch.ones(16 << 20))


def device_failed() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def poisoned() -> None:
    """A weight of every model in memory is no number: so is the next step's loss."""
    import torch
    from transformers import PreTrainedModel

    with torch.no_grad():
        for model in (one for one in gc.get_objects() if isinstance(one, PreTrainedModel)):
            next(model.parameters()).fill_(float("nan"))


def own_mistake() -> None:
    raise KeyError("a mistake of ours")


HOW: Mapping[str, Callable[[], None]] = {
    each.__name__: each for each in (killed, out_of_memory, device_failed, poisoned, own_mistake)
}


def stage(folder: Path, workers: int, progress: Callable[[int, int, str], None]) -> None:
    """Run the stage in `folder`, and break it as `scratch/break.json` says."""
    scratch = folder / "scratch"
    how: dict[str, Any] = json.loads((scratch / "break.json").read_text())

    def watched(done: int, total: int, unit: str) -> None:
        progress(done, total, unit)
        broken = len(list(scratch.glob("broken-*")))
        if unit == "steps" and done == how["step"] and broken < how["times"]:
            (scratch / f"broken-{broken}").touch()
            HOW[how["how"]]()

    launcher.execute(folder, workers, watched)
