"""Measures one small round on this machine: the recipe's own stages on few prompts.

Answers are sampled once, and scored once: every role that samples costs what this one does, and reads its answers. A
large model takes one step of each training, on few rows, since a step's time follows its rows.

Without a GPU seconds are CPU time, so that other load on the machine matters little; with one they are wall time, one
stage at a time. Memory is of one process: its peak less what it started with, or on a GPU torch's peak there.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from posttrain.config.trained import BATCH
from posttrain.config.training import TRAINED
from posttrain.errors import EmptyStageError
from posttrain.execution.launcher import execute
from posttrain.planning.costs import PASS, Measured, row_share
from posttrain.recipe.recipe import Recipe
from posttrain.stages.amounts import Shares
from posttrain.stages.registry import STAGES, learned_from
from posttrain.storage import store
from posttrain.storage.files import read_json, write_durably
from posttrain.system import versions

# Of a training: with the recipe's own batch four, of which the first warms up and does not count; with a smaller one of
# a large model one.
STEPS, FEW_STEPS = 4, 1
# Completions that are sampled: as many as the engine has under way at once on a CPU, of a large model as many as it
# makes with so many operations (two a parameter and token): some ten seconds of two cores, or one of a GPU.
MOST, FEWEST = 1024, 32
OPERATIONS = {"cpu": 2e12, "cuda": 1e15}
LEAST_PROMPTS = 4
# Rows of a training step: what so many operations are enough for (six a parameter and token, of two answers).
STEP_OPERATIONS = {"cpu": 6e11, "cuda": 1e15}
FEWEST_ROWS = 2
HELDOUT = 4  # prompts; dev ones are scored by the same code, and measured
_WARM = 8  # completions and tokens that are sampled or scored before a stage is timed
_WIDE, _NARROW = 128, 16  # rows of steps that are timed by themselves, where fewer than the first are sampled
FEW = "few-prompts"  # the folder of the prompts that are evaluated on, below the run's
_POOL = "pool"  # names the artifact with the answers that were sampled
STAND_IN = "stand-in"  # the folder of rows made from them
MADE = {"kept": "kept", "pairs": "pairs", "preferences_1": "pairs"}  # the tables in it, by the roles that they have
SCORED = "scored_samples"  # the role of the scored samples, for `pairs`
HALF = 0.5


@dataclass(frozen=True)
class Size:
    """How much a probe does: completions that are sampled, and rows of a training step (None: the recipe's batch)."""

    completions: int
    rows: int | None = None


def size(parameters: float, longest: int, device: str) -> Size:
    """The size of a probe. `longest`: most tokens of an answer; `device`: cpu or cuda."""
    completions = int(OPERATIONS[device] / (2 * parameters * longest))
    rows = int(STEP_OPERATIONS[device] / (6 * parameters * 2 * longest))
    return Size(max(FEWEST, min(MOST, completions)), max(FEWEST_ROWS, rows))


def miniature(recipe: Recipe, size: Size) -> list[str]:
    """The overrides (`--set`) that make a round of the recipe small."""
    prompts = max(LEAST_PROMPTS, size.completions // recipe.samples.k)
    changes = [
        "promote=always",
        "average_rounds=1",
        "watch=null",
        f"samples.prompts={prompts}",
    ]
    if prompts * recipe.samples.k < _WIDE and recipe.engine.server is None:  # for two processes
        answers = math.ceil(prompts / 2) * recipe.samples.k
        changes.append(f"engine.shard_tokens={answers * recipe.samples.max_new_tokens * 3 // 2}")
    if recipe.samples.difficulty:
        changes.append("samples.difficulty=null")
    if recipe.preferences and recipe.preferences.prompts != 0:
        changes.append(f"preferences.prompts={prompts}")
    if recipe.pairs:
        changes.append(f"pairs.prompts={prompts}")
    for name in TRAINED:
        section = getattr(recipe, name)
        if section is None:
            continue
        micro, accumulated = (section.trl[key] for key in BATCH)
        if size.rows is None or size.rows >= micro * accumulated:
            changes.append(f"{name}.max_steps={STEPS}")
        else:
            least = min(micro, size.rows)
            changes.append(f"{name}.max_steps={FEW_STEPS}")
            changes += [f"{name}.{BATCH[0]}={least}", f"{name}.{BATCH[1]}={max(1, size.rows // least)}"]
        if section.variants:
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


def keep_pool(root: Path, answers: Path, rows: int) -> None:
    """Lets the stages that follow read these answers, the only ones that are sampled, and what is made of them: so many
    rows, those nearest to the mean length, for trainings that would have fewer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from posttrain.data.pairs import pair_row
    from posttrain.data.tables import PAIRS

    write_durably(root / _POOL, str(answers))
    table = pq.read_table(answers / "answers.parquet")
    folder = root / STAND_IN
    folder.mkdir()
    made = table.to_pylist()
    mean = sum(row["n_tokens"] for row in made) / len(made)
    kept = sorted(made, key=lambda row: abs(row["n_tokens"] - mean))[:rows]
    scored = [{**row, "score": 1.0} for row in kept]
    pq.write_table(
        pa.Table.from_pylist(scored, table.schema.append(pa.field("score", pa.float64()))), folder / "kept.parquet"
    )
    couples = [couple for some in _by_prompt(made).values() for couple in zip(some[::2], some[1::2], strict=False)]
    couples.sort(key=lambda couple: abs(couple[0]["n_tokens"] + couple[1]["n_tokens"] - 2 * mean))
    pairs = [
        {**pair_row({**one, "score": 1.0}, {**other, "score": 0.0}, "pairs", "better"), "split": "train"}
        for one, other in couples[:rows]
    ]
    pq.write_table(pa.Table.from_pylist(pairs, schema=PAIRS), folder / "pairs.parquet")


def measure(folder: Path, workers: int, progress: Callable[[int, int, str], None]) -> None:
    """Runs a stage as `execute` does, and writes its measurement beside the run. Answers that are known are not sampled
    again, and cost nothing here."""
    stage, root = read_json(folder / "stage.json"), folder.parent.parent
    _change(stage, root)
    write_durably(folder / "stage.json", json.dumps(stage))
    if STAGES[stage["stage"]].samples and _answer_again(folder, stage, root):
        return
    clock, memory = _clock(), _memory()
    started, events = clock(), list[tuple[float, int, int]]()

    def noted(done: int, total: int, unit: str) -> None:
        events.append((clock(), done, total))
        progress(done, total, unit)

    if SCORED in stage["inputs"]:
        _score_again(folder, stage, root)
    steps = {} if (folder / "scratch" / "scored").is_dir() else _load(stage, root)
    loaded = clock()
    try:
        metrics = execute(folder, workers, noted)
    except EmptyStageError:
        metrics = _stand_in(folder, stage, root)
    ended = clock()
    units: float = sum(total for _, done, total in events if done == total) or metrics.get("rows", 1)
    unit, batch_seconds = None, 0.0
    if STAGES[stage["stage"]].trained:
        name = stage["stage"]
        batch = stage["config"][name]["batch"]
        passes = learned_from({name: metrics}).get(name, 0) * STAGES[name].reference_reads
        units = metrics["steps"] * batch + passes * PASS
        first = events[int(metrics["steps"] > FEW_STEPS)]
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


def _change(stage: dict[str, Any], root: Path) -> None:
    """Gives a stage few evaluation prompts; the training prompts whose answers are known; and where a training has too
    few rows, those of `keep_pool`."""
    import pyarrow.parquet as pq

    config, inputs = stage["config"], stage["inputs"]
    if config.get("set") in ("dev", "heldout"):
        inputs["prompts"] = FEW
        config["further"] = []  # of the base alone, and no other work
    pool = _pool(root)
    if pool is None:
        return
    where = config.get("where") or config.get("preferences", {}).get("where")
    if "take" in config and not where:
        config["take"] = {**read_json(pool / store.MANIFEST)["config"]["take"], "count": config["take"]["count"]}
    if not STAGES[stage["stage"]].trained:
        return
    section = config[stage["stage"]]
    for role, name in MADE.items():
        if role in inputs:
            rows = pq.read_metadata(root / inputs[role] / f"{name}.parquet").num_rows
            if rows < section["max_steps"] * section["batch"]:
                inputs[role] = STAND_IN


def _pool(root: Path) -> Path | None:
    """The artifact with the answers that were sampled; None before that."""
    path = root / _POOL
    return Path(path.read_text("utf-8")) if path.is_file() else None


def _by_prompt(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["prompt_id"], []).append(row)
    return found


def _answer_again(folder: Path, stage: Mapping[str, Any], root: Path) -> bool:
    """Publishes known answers as those of this stage, evaluation prompts with those to others. False where answers to
    its prompts are not known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from posttrain.data.tables import ANSWERS
    from posttrain.execution.launcher import job_of
    from posttrain.stages.answers import prompts_of, samplings

    pool = _pool(root)
    if pool is None:
        return False
    job = job_of(stage, folder, 1)
    prompts, known = prompts_of(job), _by_prompt(pq.read_table(pool / "answers.parquet").to_pylist())
    if stage["config"]["set"] == "train" and not all(prompt["id"] in known for prompt in prompts):
        return False
    others, made = cycle(known.values()), list[dict[str, Any]]()
    for sampling in samplings(job):
        for prompt in prompts:
            rows = known.get(prompt["id"]) or next(others)
            start = len(rows) // 2 if sampling.tag == "previous" else 0  # other answers than the policy's
            own = {"prompt_id": prompt["id"], "prompt": prompt["prompt"], "columns": prompt["columns"]}
            for (tag, index), row in zip(sampling.named, islice(cycle(rows), start, None), strict=False):
                made.append({**row, **own, "tag": tag, "sample_index": index})
    pq.write_table(pa.Table.from_pylist(made, schema=ANSWERS), folder / "out" / "answers.parquet")
    _publish(folder, stage, root, {"prompts": len(prompts), "completions": len(made)})
    return True


def _stand_in(folder: Path, stage: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Publishes the rows of `keep_pool` for a stage that kept none, so that what follows is measured. Raises the error
    that it had where there are none for it."""
    name = {"filters": "kept", "preferences": "pairs", "pairs": "pairs"}.get(stage["stage"])
    pool = _pool(root)
    if name is None or pool is None:
        raise
    prompts = read_json(pool / store.MANIFEST)["metrics"]["prompts"]
    shutil.rmtree(folder / "out")
    (folder / "out").mkdir()
    shutil.copy(root / STAND_IN / f"{name}.parquet", folder / "out")
    metrics = {"prompts": prompts, "rows": prompts, "kept": 0, "pairs": 0}
    _publish(folder, stage, root, metrics)
    return metrics


def _publish(folder: Path, stage: Mapping[str, Any], root: Path, metrics: Mapping[str, Any]) -> None:
    described = {name: stage[name] for name in ("stage", "key", "input_keys", "outside", "config")}
    manifest = {**described, "versions": versions(), "seconds": 0.0, "attempts": [], "metrics": metrics}
    store.publish(folder, root / "artifacts", manifest)


def _score_again(folder: Path, stage: Mapping[str, Any], root: Path) -> None:
    """Gives `pairs` the scores of the samples as its own, where its answers are those: as if it had been stopped once
    all were scored."""
    import pyarrow.parquet as pq

    from posttrain.rewards.scoring import slices
    from posttrain.storage.pieces import Pieces
    from posttrain.storage.shards import name_of

    answers = root / stage["inputs"]["answers"] / "answers.parquet"
    table = pq.read_table(root / stage["inputs"][SCORED] / "scored.parquet")
    if table["tokens"] == pq.read_table(answers, columns=["tokens"])["tokens"]:
        pieces = Pieces(folder / "scratch" / "scored")
        for number, (start, stop) in enumerate(slices(answers)):
            pieces.keep(name_of(number), table.slice(start, stop - start))


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
    where the stage samples fewer than `_WIDE` completions.
    """
    from posttrain import rollouts
    from posttrain.engines.protocol import Request, SamplingParams
    from posttrain.rewards import scoring

    if STAGES[stage["stage"]].samples and not stage["runtime"].get("server"):
        engine, policy = stage["config"]["engine"], str(root / stage["inputs"]["policy"])
        loaded = rollouts._engine(policy, engine["use"], engine["dtype"])
        ids = tuple(rollouts._tokenizer(policy).encode("a b c d", add_special_tokens=False))
        loaded.generate([Request(ids, tuple(range(_WARM)))], SamplingParams(1.0, _WARM))
        if (
            stage["config"]["set"] == "train"
            and stage["config"]["take"]["count"] * stage["config"]["answers"]["k"] < _WIDE
        ):
            return {rows: _step(loaded, Request(ids, tuple(range(rows)))) for rows in (_NARROW, _WIDE)}
    elif "reward_model" in stage["inputs"]:
        model = str(root / stage["inputs"]["reward_model"])
        ids = scoring._tokenizer(model).encode("a b c d", add_special_tokens=False)
        scoring._scorer(model, stage["config"].get("scoring_dtype", "float32")).score([ids], [[ids] * _WARM])
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
