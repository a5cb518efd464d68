"""Whether disk and memory have room for what is to come, asked before it is begun: before a run and before each stage.

What a stage needs is computed from the sizes of its model and its tables, as little as it can be; so who is stopped
here would have failed later. Not covered: activations, the memory of a GPU (a training there halves its micro-batches
by itself), and what other programs take in the meantime.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config import Model
from posttrain.errors import RoomError
from posttrain.models import look, weights
from posttrain.planning import sizes
from posttrain.recipe.recipe import Recipe
from posttrain.stages.registry import STAGES
from posttrain.storage.store import Store
from posttrain.system import gpu

_SETS = ("train", "dev", "heldout")


@dataclass(frozen=True)
class Need:
    """Bytes, at least."""

    disk: float = 0.0
    memory: float = 0.0


def check_run(recipe: Recipe, n: int, run: Store) -> None:
    """Whether there is room for the rounds that are not there yet: their models, and one training at a time.

    Raises:
        RoomError: disk or memory is too small.
    """
    from posttrain.planning.rehearsal import rehearse  # here, since planning imports the loop, which imports this

    there = len(run.read_run().get("rounds", []))
    size = look(recipe.model).size
    shape = recipe.model_copy(update={"model": Model(path="tiny-base")})  # small to hash; the stages are the same
    made = [step for step in rehearse(shape, n) if step.spec.makes_model and step.number >= there]
    if not made:
        return
    count, model = sizes.parameters(size), recipe.model.in_key()
    extra = sizes.training_disk(count, 0, model)
    need = Need(len(made) * size + extra, sizes.training_memory(count, model))
    check(need, run.root, f"the models of these rounds ({len(made)} of {_said(size)}, and checkpoints)")


def of_stage(stage: Mapping[str, Any], root: Path) -> Need:
    """What a stage needs that is described as in `stage.json`, in the run at `root`. What it has already written in
    its work folder is taken off."""
    inputs = {role: root / path for role, path in stage["inputs"].items()}
    if STAGES[stage["stage"]].trained:
        model = stage["config"]["model"]
        count = sizes.counted(inputs["model"])
        need = Need(sizes.training_disk(count, weights(inputs["model"]), model), sizes.training_memory(count, model))
    elif "prompts" in inputs and STAGES[stage["stage"]].samples:
        served = "server" in stage["runtime"]  # then the weights are elsewhere
        need = Need(_answers(stage, inputs["prompts"]), 0.0 if served else max(map(weights, inputs.values())))
    else:
        tables = sum(path.stat().st_size for folder in inputs.values() for path in folder.glob("*.parquet"))
        need = Need(tables, 0.0)
    already = sum(path.stat().st_size for path in (root / "work" / stage["key"]).rglob("*") if path.is_file())
    return Need(max(0.0, need.disk - already), need.memory)


def check(need: Need, root: Path, what: str) -> None:
    """Raises RoomError: less is free than `what` needs."""
    import psutil

    there = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    free, memory = shutil.disk_usage(there).free, psutil.virtual_memory().available
    if need.disk > free:
        raise RoomError(
            f"{what} need about {_said(need.disk)} on the disk, and {_said(free)} are free at {there}; nothing was "
            "begun. Make room there (older runs, the cache of the Hub), or name another disk by --run",
            rule="command-disk-room",
        )
    if need.memory > memory and not gpu():
        raise RoomError(
            f"{what} need about {_said(need.memory)} of memory, and {_said(memory)} are free; nothing was begun. Take "
            "a smaller model, train adapters (model.lora), or use a larger machine",
            rule="command-memory-room",
        )


def _answers(stage: Mapping[str, Any], prompts: Path) -> float:
    """Bytes of the answers that a stage samples, each as long as it may be."""
    import pyarrow.parquet as pq

    from posttrain.planning.amounts import Sets, Shares, amounts
    from posttrain.planning.rehearsal import Step

    files = {name: prompts / f"{name}.parquet" for name in _SETS}
    rows = {name: pq.read_metadata(path).num_rows if path.is_file() else 0 for name, path in files.items()}
    step = Step(stage["key"], 0, stage["stage"], stage["stage"], stage["config"], {}, frozenset())
    made = amounts([step], Sets(**rows, where=rows["train"]), Shares())[stage["key"]]
    return made.tokens * sizes.TOKEN * sizes.COPIES


def _said(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
