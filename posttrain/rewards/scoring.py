"""Rewards and a reward model over a table of answers, slice by slice in several processes."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain import rewards
from posttrain.config import RewardEntry
from posttrain.data.chat_template import Tails, render_answers, render_turns
from posttrain.data.messages import Message
from posttrain.errors import StageError
from posttrain.job import Job
from posttrain.rewards import RewardFunction
from posttrain.rewards.combine import REWARD_MODEL
from posttrain.storage.pieces import even
from posttrain.storage.shards import concatenate, processes, run_shards
from posttrain.system import device

if TYPE_CHECKING:
    from posttrain.engines.reward_scorer import Scorer

_ROWS, _FEW = 2048, 64  # of a slice


@dataclass(frozen=True)
class Scorers:
    """The scorers of completions: reward functions, judges with a rubric, and the folder of a reward model, which
    computes in `dtype`."""

    rewards: tuple[RewardFunction, ...] = ()
    reward_model: str | None = None
    dtype: str = "float32"


def load_scorers(job: Job) -> tuple[Scorers, dict[str, float]]:
    """The scorers of a job, from its config `rewards` and its input `reward_model`, and their weights by name."""
    entries = job.sections("rewards", RewardEntry)
    functions = load_rewards([entry for entry in entries if not entry.is_reward_model], job)
    model = job.inputs.get("reward_model")
    scorers = Scorers(tuple(functions), str(model) if model else None, scoring_dtype(job))
    return scorers, {entry.name: entry.weight for entry in entries}


def scoring_dtype(job: Job) -> str:
    """In what the reward models of a job compute."""
    return job.config.get("scoring_dtype", "float32")


def load_rewards(entries: Sequence[RewardEntry], job: Job) -> list[RewardFunction]:
    """The reward functions and judges of these entries."""
    runtime = rewards.Runtime(job.runtime.get("reward_minutes"), job.scratch)
    return [rewards.load(entry, runtime) for entry in entries]


def score_shards(job: Job, answers: Path, scorers: Scorers, name: str = "scored") -> list[Path]:
    """Scores the table `answers` into files of about 2,048 rows, in its order; after a kill only unfinished ones are
    scored again. `name`: their folder in the job's scratch."""
    parts = slices(answers)
    count = job.counter(sum(stop - start for start, stop in parts), "scores")
    work = functools.partial(_score_slice, answers, scorers)
    return run_shards(work, parts, job.scratch / name, processes(job.workers), count, part=job.part)


def score_table(job: Job, answers: Path, scorers: Scorers, target: Path) -> Path:
    """Scores the table `answers` into one file, `target`."""
    concatenate(score_shards(job, answers, scorers, target.stem), target)
    return target


def _score_slice(path: Path, scorers: Scorers, rows: tuple[int, int]) -> pa.Table:
    return score_rows(_rows(path, *rows), scorers)


def _rows(path: Path, start: int, stop: int) -> pa.Table:
    """Rows start..stop: of the file, only the row groups that hold them are read."""
    file, first, groups, before = pq.ParquetFile(path), 0, list[int](), 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if first + rows <= start:
            before = first + rows
        elif first < stop:
            groups.append(group)
        first += rows
    return file.read_row_groups(groups).slice(start - before, stop - start)


def slices(path: Path) -> list[tuple[int, int]]:
    """Even ranges of at most about 2,048 rows that end where a prompt ends; of few rows four, so that few prompts of a
    large model use more than one core."""
    ids = pq.read_table(path, columns=["prompt_id"])["prompt_id"].to_pylist()
    size = even(len(ids), min(_ROWS, max(_FEW, math.ceil(len(ids) / 4))))
    slices, start = [], 0
    while start < len(ids):
        stop = min(start + size, len(ids))
        while stop < len(ids) and ids[stop] == ids[stop - 1]:
            stop += 1
        slices.append((start, stop))
        start = stop
    return slices


def score_rows(answers: pa.Table, scorers: Scorers) -> pa.Table:
    """`answers` with a column `rewards`: see SCORED_ANSWERS. Rows of one prompt must stand together."""
    rows = answers.select(["prompt_id", "prompt", "completion", "tokens", "columns"]).to_pylist()
    column = [json.dumps(values) for values in row_values(rows, scorers)]
    return answers.append_column("rewards", pa.array(column, pa.string()))


def row_values(rows: Sequence[Mapping[str, Any]], scorers: Scorers) -> list[dict[str, float | None]]:
    """What the scorers give each row of ANSWERS, by name. Rows of one prompt must stand together."""
    values = reward_values(rows, scorers.rewards)
    if scorers.reward_model is not None:
        values[REWARD_MODEL] = model_rewards(rows, scorers.reward_model, scorers.dtype)
    return [{name: given[at] for name, given in values.items()} for at in range(len(rows))]


def reward_values(
    rows: Sequence[Mapping[str, Any]], functions: Sequence[RewardFunction]
) -> dict[str, Sequence[float | None]]:
    """The scores by each reward function: {reward name: one value or None per row}."""
    if not functions:
        return {}
    columns = columns_of(rows)
    prompts = [row["prompt"] for row in rows]
    completions = [row["completion"] for row in rows]
    return {reward.name: reward(prompts, completions, columns) for reward in functions}


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The prompts' own columns, as functions are given them: a list for each, null where a row has not that column."""
    parsed = [json.loads(row["columns"]) for row in rows]
    names = list(dict.fromkeys(name for columns in parsed for name in columns))
    return {name: [row.get(name) for row in parsed] for name in names}


def model_rewards(rows: Sequence[Mapping[str, Any]], reward_model: str, dtype: str = "float32") -> list[float]:
    """The reward model's logit for each row. Rows of one prompt must stand together.

    Raises:
        StageError: a logit is not a finite number.
    """
    tokenizer = _tokenizer(reward_model)
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row["prompt_id"])]
    tails: Tails = {}
    rendered = [
        _rendered(tokenizer, group[0]["prompt"], [row["completion"] for row in group], tails) for group in groups
    ]
    prompts, answers = [prompt for prompt, _ in rendered], [answers for _, answers in rendered]
    scores = cached_scorer(reward_model, dtype).score(prompts, answers)
    values = [value for group in scores for value in group]
    for row, value in zip(rows, values, strict=True):
        if not math.isfinite(value):
            raise StageError(
                f"the reward model gave {value} to an answer to prompt {row['prompt_id']}, which is no finite number; "
                f"nothing was published. It was computed in {dtype}, "
                + ("so" if dtype == "float32" else "so, unless engine.dtype: float32 helps,")
                + f" its training, its weights or its config are at fault: {reward_model}",
                rule="model-scores-not-finite",
            )
    return values


def scored_slowly(reward_model: str) -> list[str]:
    """For a stage's metrics: why this reward model scores in the slow way. Empty where it does not."""
    reason = cached_scorer(reward_model, "float32").fallback
    return [f"answers are scored one by one, which takes longer: {reason}"] if reason else []


def _rendered(
    tokenizer: Any, prompt: Sequence[Message], answers: Sequence[Sequence[Message]], tails: Tails
) -> tuple[list[int], list[list[int]]]:
    """The tokens of a prompt, and those that each answer adds to it."""
    if all(len(answer) == 1 for answer in answers):
        return render_answers(tokenizer, prompt, [answer[0]["content"] for answer in answers], tails)
    turns = [render_turns(tokenizer, prompt, answer) for answer in answers]  # those that people gave may have several
    return turns[0][0], [ids for _, ids, _ in turns]


@functools.lru_cache(maxsize=2)
def cached_scorer(path: str, dtype: str) -> Scorer:
    """The reward model of a folder, kept in this process."""
    from posttrain.engines.reward_scorer import load_scorer

    return load_scorer(path, dtype, device())


@functools.lru_cache(maxsize=2)
def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)
