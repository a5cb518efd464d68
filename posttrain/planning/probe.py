"""Measures one small round on this machine: the recipe's own stages on few prompts.

Without a GPU seconds are CPU time, so that other load on the machine matters little; with one they are wall time, one
stage at a time. Memory is of one process: its peak less what it started with, or on a GPU torch's peak there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain.config.training import TRAINED
from posttrain.execution.launcher import execute
from posttrain.planning.costs import Measured, steps_and_passes, together
from posttrain.recipe.recipe import Recipe
from posttrain.stages.amounts import Shares
from posttrain.stages.registry import STAGES, learned_from
from posttrain.storage import store
from posttrain.storage.files import read_json, write_durably

STEPS = 4  # of each training
# Completions of each sampling: as many as the engine has under way at once on a CPU. With fewer a batch is slower and
# smaller, so the plan would say too much time and too little memory. A large model gets as few as it makes with so many
# operations (two a parameter and token): some seconds of a GPU, or of two cores.
MOST, FEWEST = 1024, 32
OPERATIONS = {"cpu": 1e12, "cuda": 1e15}
HELDOUT = 4  # prompts; dev ones are answered by the same code, and measured
_WARM = 8  # completions and tokens that are sampled or scored before a stage is timed
FEW = "few-prompts"  # the folder of the prompts that are evaluated on, below the run's


def completions(parameters: float, longest: int, device: str) -> int:
    """The completions of at most `longest` tokens that each stage of the probe samples. `device`: cpu or cuda."""
    return max(FEWEST, min(MOST, int(OPERATIONS[device] / (2 * parameters * longest))))


def miniature(recipe: Recipe, completions: int) -> list[str]:
    """The overrides (`--set`) that make a round of the recipe small: about so many completions per sampling stage."""
    changes = [
        "promote=always",
        "average_rounds=1",
        "watch=null",
        "compute.workers=1",
        f"samples.prompts={max(8, completions // recipe.samples.k)}",
    ]
    if recipe.samples.difficulty:
        changes.append("samples.difficulty=null")
    if recipe.preferences and recipe.preferences.prompts != 0:
        changes.append(f"preferences.prompts={max(8, completions // (2 * recipe.preferences.k))}")
    if recipe.pairs:
        changes.append(f"pairs.prompts={max(8, completions // recipe.pairs.k)}")
    for name in TRAINED:
        section = getattr(recipe, name)
        if section is not None:
            changes.append(f"{name}.max_steps={STEPS}")
        if section is not None and section.variants:
            changes.append(f"{name}.variants=[]")
    return changes


def write_few(prompts: Path, root: Path, dev: int) -> None:
    """Writes the probe's evaluation prompts, spread over each set, at most `dev` of dev."""
    import pyarrow.parquet as pq

    folder = root / FEW
    folder.mkdir(exist_ok=True)
    for name, wanted in {"dev": dev, "heldout": HELDOUT}.items():
        table = pq.read_table(prompts / f"{name}.parquet")
        few = table.take(list(range(0, table.num_rows, max(1, table.num_rows // wanted)))[:wanted])
        pq.write_table(few, folder / f"{name}.parquet")


def measure(folder: Path, workers: int, progress: Callable[[int, int, str], None]) -> None:
    """Runs a stage as `execute` does, and writes its measurement beside the run. Evaluations see few prompts."""
    stage = read_json(folder / "stage.json")
    root = folder.parent.parent
    heldout = stage["config"].get("set") == "heldout"
    if (heldout or stage["config"].get("set") == "dev") and (root / FEW).is_dir():
        stage["inputs"]["prompts"] = FEW
        stage["config"]["further"] = []  # of the base alone, and no other work
        write_durably(folder / "stage.json", json.dumps(stage))
    clock, memory = _clock(), _memory()
    started, events = clock(), list[tuple[float, int, int]]()

    def noted(done: int, total: int, unit: str) -> None:
        events.append((clock(), done, total))
        progress(done, total, unit)

    _load(stage, root)
    loaded = clock()
    metrics = execute(folder, workers, noted)
    ended = clock()
    if heldout:
        return  # too few to measure
    units: float = sum(total for _, done, total in events if done == total) or metrics.get("rows", 1)
    step = None
    if STAGES[stage["stage"]].trained:
        name = stage["stage"]
        batch = stage["config"][name]["batch"]
        passes = learned_from({name: metrics}).get(name, 0) * STAGES[name].reference_reads
        units = steps_and_passes(metrics["steps"], passes, batch)
        step = (events[-1][0] - events[0][0]) / max(len(events) - 1, 1)
    size = sum(file["size"] for file in read_json(root / "artifacts" / folder.name / store.MANIFEST)["files"].values())
    found = Measured(stage["stage"], ended - started, loaded - started, units, step, _memory() - memory, size, metrics)
    target = root / "measured"
    target.mkdir(exist_ok=True)
    (root / "resident").write_text(str(memory), "utf-8")
    write_durably(target / f"{folder.name}.json", json.dumps(vars(found)))


def read_measured(root: Path) -> dict[str, Measured]:
    """The measurements by stage: of `answers` all roles merged, of others the last."""
    files = sorted((root / "measured").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    made: dict[str, list[Measured]] = {}
    for path in files:
        found = Measured(**json.loads(path.read_text("utf-8")))
        made.setdefault(found.stage, []).append(found)
    return {stage: together(some) if STAGES[stage].samples else some[-1] for stage, some in made.items()}


def resident(root: Path) -> int:
    """Bytes of a process before its stage started; 0 where that was not measured, as on a GPU."""
    path = root / "resident"
    return int(path.read_text("utf-8")) if path.is_file() else 0


def shares(measured: Mapping[str, Measured]) -> Shares:
    """The shares of rows kept in the probe, with the starting model."""
    default = Shares()

    def share(stage: str, part: str, whole: str, otherwise: float) -> float:
        found: Mapping[str, Any] = measured[stage].metrics if stage in measured else {}
        return found[part] / found[whole] if found.get(whole) else otherwise

    return Shares(
        preferences=share("preferences", "pairs", "prompts", default.preferences),
        kept=share("filters", "kept", "rows", default.kept),
        pairs=share("pairs", "pairs", "prompts", default.pairs),
        length=share("answers", "tokens", "completions", 0.0) or None,
    )


def _load(stage: Mapping[str, Any], root: Path) -> None:
    """Loads and warms up the models of a stage that samples or scores, so that this cost per process is measured
    separately.

    They are kept for the stage. A server is started by the stage itself.
    """
    from posttrain import rollouts
    from posttrain.engines.protocol import Request, SamplingParams
    from posttrain.rewards import scoring

    if STAGES[stage["stage"]].samples and not stage["runtime"].get("server"):
        engine, policy = stage["config"]["engine"], str(root / stage["inputs"]["policy"])
        loaded = rollouts._engine(policy, engine["use"], engine["dtype"])
        ids = tuple(rollouts._tokenizer(policy).encode("a b c d", add_special_tokens=False))
        loaded.generate([Request(ids, tuple(range(_WARM)))], SamplingParams(1.0, _WARM))
    elif "reward_model" in stage["inputs"]:
        model = str(root / stage["inputs"]["reward_model"])
        ids = scoring._tokenizer(model).encode("a b c d", add_special_tokens=False)
        scoring._scorer(model).score([ids], [[ids] * _WARM])


def _clock() -> Callable[[], float]:
    from posttrain.system import device

    return time.perf_counter if device() == "cuda" else lambda: sum(os.times()[:4])


def _memory() -> int:
    """This process's peak memory so far, in bytes."""
    import resource
    import sys

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
