"""Measures one small round on this machine: the recipe's own stages on few prompts.

Answers are sampled once, and scored once: every role that samples costs what this one does, and reads its answers. A
large model takes two steps of each training, on few rows, since a step's time follows its rows.

Without a GPU seconds are CPU time, so that other load on the machine matters little; with one they are wall time, one
stage at a time. Memory is of one process: its peak less what it started with, or on a GPU torch's peak there.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import EmptyStageError
from posttrain.execution.launcher import execute
from posttrain.planning import known_answers
from posttrain.planning.costs import PASS, Measured, row_share
from posttrain.planning.miniature import WIDE
from posttrain.stages.amounts import Shares
from posttrain.stages.registry import STAGES, learned_from
from posttrain.storage import store
from posttrain.storage.files import read_json, write_durably

_WARM = 8  # completions and tokens that are sampled or scored before a stage is timed
_NARROW = 16  # rows of the step that is timed beside the wide one
HALF = 0.5


def measure(folder: Path, workers: int, progress: Callable[[int, int, str], None]) -> None:
    """Runs a stage as `execute` does, and writes its measurement beside the run. Answers that are known are not sampled
    again, and cost nothing here."""
    stage, root = read_json(folder / "stage.json"), folder.parent.parent
    known_answers.change(stage, root)
    write_durably(folder / "stage.json", json.dumps(stage))
    if STAGES[stage["stage"]].samples and known_answers.answer_again(folder, stage, root):
        return
    clock, memory = _clock(), _memory()
    started, events = clock(), list[tuple[float, int, int]]()

    def noted(done: int, total: int, unit: str) -> None:
        events.append((clock(), done, total))
        progress(done, total, unit)

    if known_answers.SCORED in stage["inputs"]:
        known_answers.score_again(folder, stage, root)
    steps = {} if (folder / "scratch" / "scored").is_dir() else _load(stage, root)
    loaded = clock()
    try:
        metrics = execute(folder, workers, noted)
    except EmptyStageError:
        metrics = known_answers.stand_in(folder, stage, root)
    ended = clock()
    units: float = sum(total for _, done, total in events if done == total) or metrics.get("rows", 1)
    unit, batch_seconds = None, 0.0
    if STAGES[stage["stage"]].trained:
        name = stage["stage"]
        batch = stage["config"][name]["batch"]
        passes = learned_from({name: metrics}).get(name, 0) * STAGES[name].reference_reads
        units = metrics["steps"] * batch + passes * PASS
        first = events[int(metrics["steps"] > 1)]
        unit = (events[-1][0] - first[0]) / (max(events[-1][1] - first[1], 1) * batch)
    elif steps:
        unit, batch_seconds = _divided(stage, root / "artifacts" / folder.name, ended - loaded, steps)
    size = sum(file["size"] for file in read_json(root / "artifacts" / folder.name / store.MANIFEST)["files"].values())
    used = _memory() - memory
    found = Measured(stage["stage"], ended - started, loaded - started, units, unit, batch_seconds, used, size, metrics)
    target = root / "measured"
    target.mkdir(exist_ok=True)
    (root / "resident").write_text(str(memory), "utf-8")
    write_durably(target / f"{folder.name}.json", json.dumps(vars(found)))


def _divided(stage: Mapping[str, Any], made: Path, seconds: float, steps: Mapping[int, float]) -> tuple[float, float]:
    """The seconds of a completion and those of a batch that these took."""
    import pyarrow.parquet as pq

    asked, shard = stage["config"]["answers"], stage["config"]["engine"]["shard_tokens"]
    lengths = pq.read_table(made / "answers.parquet", columns=["n_tokens"])["n_tokens"].to_pylist()
    prompts = math.ceil(len(lengths) / asked["k"])
    shards = math.ceil(prompts / max(1, shard // (asked["max_new_tokens"] * asked["k"])))
    share = row_share(sum(lengths) / max(lengths) / shards, steps)
    return seconds * share / len(lengths), seconds * (1 - share) / shards


def read_measured(root: Path) -> dict[str, Measured]:
    """The measurements by stage: the first of `answers`, of others the last."""
    files = sorted((root / "measured").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    found: dict[str, Measured] = {}
    for path in files:
        one = Measured(**json.loads(path.read_text("utf-8")))
        if one.stage not in found or not STAGES[one.stage].samples:
            found[one.stage] = one
    return found


def seconds(root: Path, key: str) -> float | None:
    """What one stage took, of a core; None where it was not measured."""
    path = root / "measured" / f"{key}.json"
    return json.loads(path.read_text("utf-8"))["seconds"] if path.is_file() else None


def resident(root: Path) -> int:
    """Bytes of a process before its stage started; 0 where that was not measured, as on a GPU."""
    path = root / "resident"
    return int(path.read_text("utf-8")) if path.is_file() else 0


def shares(measured: Mapping[str, Measured]) -> Shares:
    """The shares of rows kept in the probe, with the starting model; where none was, half a one counts."""
    default = Shares()

    def share(stage: str, part: str, whole: str, otherwise: float) -> float:
        found: Mapping[str, Any] = measured[stage].metrics if stage in measured else {}
        return max(found[part], HALF) / found[whole] if found.get(whole) else otherwise

    return Shares(
        preferences=share("preferences", "pairs", "prompts", default.preferences),
        kept=share("filters", "kept", "rows", default.kept),
        pairs=share("pairs", "pairs", "prompts", default.pairs),
        length=share("answers", "tokens", "completions", 0.0) or None,
    )


def _load(stage: Mapping[str, Any], root: Path) -> dict[int, float]:
    """Loads and warms up the models of a stage that samples or scores, so that this cost per process is measured
    separately.

    They are kept for the stage. A server is started by the stage itself. Returns the seconds of a step by its rows,
    where the stage samples fewer than `WIDE` completions.
    """
    from posttrain import rollouts
    from posttrain.engines.protocol import Request, SamplingParams
    from posttrain.rewards import scoring

    if STAGES[stage["stage"]].samples and not stage["runtime"].get("server"):
        engine, policy = stage["config"]["engine"], str(root / stage["inputs"]["policy"])
        loaded = rollouts.cached_engine(policy, engine["use"], engine["dtype"])
        ids = tuple(rollouts.cached_tokenizer(policy).encode("a b c d", add_special_tokens=False))
        loaded.generate([Request(ids, tuple(range(_WARM)))], SamplingParams(1.0, _WARM))
        if (
            stage["config"]["set"] == "train"
            and stage["config"]["take"]["count"] * stage["config"]["answers"]["k"] < WIDE
        ):
            return {rows: _step(loaded, Request(ids, tuple(range(rows)))) for rows in (_NARROW, WIDE)}
    elif "reward_model" in stage["inputs"]:
        model = str(root / stage["inputs"]["reward_model"])
        ids = scoring._tokenizer(model).encode("a b c d", add_special_tokens=False)
        scoring.cached_scorer(model, stage["config"].get("scoring_dtype", "float32")).score([ids], [[ids] * _WARM])
    return {}


def _step(engine: Any, request: Any) -> float:
    """Seconds of a step of this request. Its rows part at once: those whose tokens are the same are computed as one."""
    from posttrain.engines.protocol import SamplingParams

    clock = _clock()
    started = clock()
    engine.generate([request], SamplingParams(temperature=4.0, max_new_tokens=_WARM))
    return (clock() - started) / _WARM


def _clock() -> Callable[[], float]:
    from posttrain.system import device

    return time.perf_counter if device() == "cuda" else lambda: sum(os.times()[:4])


def _memory() -> int:
    """The peak memory so far of this process, or of one that it started, in bytes."""
    import resource
    import sys

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return most if sys.platform == "darwin" else most * 1024
