"""Sampling and scoring one shard of prompts: what the stages that sample have in common.

A shard is plain data, so that any process can take it. Engines, tokenizers and reward models are loaded once a
process and kept while they are used.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain import rewards
from posttrain.config import RewardEntry
from posttrain.data.chat_template import Tails, render_answers, render_prompt, render_turns
from posttrain.data.messages import Message, under
from posttrain.data.tables import GREEDY, SAMPLES
from posttrain.engines.protocol import Engine, Request, SamplingParams, completion_seed
from posttrain.engines.server_dialects import DIALECTS, ServerSettings
from posttrain.errors import StageError
from posttrain.job import Job
from posttrain.rewards import Reward
from posttrain.rewards.combine import REWARD_MODEL
from posttrain.rewards.judge_reward import JudgeReward, load_reward
from posttrain.storage.pieces import cut, even
from posttrain.storage.shards import concatenate, run_shards
from posttrain.system import device

if TYPE_CHECKING:
    from posttrain.engines.reward_scorer import Scorer
    from posttrain.engines.server import ServerEngine

_FALLBACK = b"fallback"  # among a table's own words: why the engine was not the one that was asked for


@dataclass(frozen=True)
class Sampling:
    """Where samples come from. `use`, `dtype` and `server` as in `load_engine`: see `engine`. `system`: the message
    under which prompts without one of their own are answered; the rows hold the prompts as they were. `greedy`: before
    the K, the greedy completion too, under the tag GREEDY: with them it costs little."""

    policy: str
    params: SamplingParams
    k: int
    seed: int
    tag: str = ""
    use: str = "shared-prefix"
    dtype: str = "auto"
    server: ServerSettings | None = None
    system: str | None = None
    greedy: bool = False


def engine(job: Job) -> dict[str, Any]:
    """What the job's config and runtime say of the engine: `use`, `dtype` and `server` of a Sampling."""
    config, server = job.config["engine"], job.runtime.get("server")
    settings = None
    if server is not None:
        start = tuple(server["start"]) if server["start"] else None
        settings = ServerSettings(server["kind"], start, server["url"], str(job.scratch / "server.log"))
    return {"use": config["use"], "dtype": config["dtype"], "server": settings}


def sampled_by(job: Job) -> dict[str, Any]:
    """For a stage's metrics, where a server sampled: which kind, and whether the same run would give the same;
    `faults`, where there were any: replies that were not taken, by rule."""
    kind = job.config["engine"].get("server")
    if kind is None:
        return {}
    from posttrain.engines.server import faults_in

    can, faults = DIALECTS[kind].capabilities, faults_in(job.scratch)
    told = {"server": kind, "seeds": can.seeds, "token_ids": can.token_ids, "same_bits_again": False}
    return {"engine": told | ({"faults": faults} if faults else {})}


@dataclass(frozen=True)
class Judges:
    """What scores a completion: reward functions, judges with a rubric, and a reward model's folder."""

    rewards: tuple[Reward | JudgeReward, ...] = ()
    reward_model: str | None = None


def judges(job: Job) -> tuple[Judges, dict[str, float]]:
    """What the job's `rewards` mean, and the weight of each by name. A reward model is among its inputs."""
    entries = job.sections("rewards", RewardEntry)
    functions = load_rewards([entry for entry in entries if not entry.is_reward_model], job)
    model = job.inputs.get("reward_model")
    return Judges(tuple(functions), str(model) if model else None), {entry.name: entry.weight for entry in entries}


def load_rewards(entries: Sequence[RewardEntry], job: Job) -> list[Reward | JudgeReward]:
    """The reward functions and judges of these entries."""
    minutes = job.runtime.get("reward_minutes")
    return [
        load_reward(entry, job.scratch) if entry.judge else rewards.patient(rewards.load(entry), minutes)
        for entry in entries
    ]


@dataclass(frozen=True)
class Shard:
    """A slice of prompts (rows with id, prompt, columns) to sample and to score."""

    prompts: tuple[Mapping[str, Any], ...]
    sampling: Sampling
    judges: Judges


def plan(prompts: Sequence[Mapping[str, Any]], sampling: Sampling, judges: Judges, shard_prompts: int) -> list[Shard]:
    """Even shards of at most `shard_prompts`, prompts of like length together, so that little is padded."""
    ordered = sorted(prompts, key=lambda row: (sum(len(m["content"]) for m in row["prompt"]), row["id"]))
    size = even(len(ordered), shard_prompts)
    return [Shard(tuple(part), sampling, judges) for part in cut(ordered, size)]


def rollout(shard: Shard) -> pa.Table:
    """Sample the shard's prompts, K completions each, and score them. Rows: prompt by prompt, each in order."""
    sampling = shard.sampling
    start(shard.judges.rewards)
    engine = _engine(sampling.policy, sampling.use, sampling.dtype, sampling.server)
    tokenizer = _tokenizer(sampling.policy)
    requests = [
        Request(
            tuple(render_prompt(tokenizer, under(sampling.system, prompt["prompt"]))),
            (
                *[None] * sampling.greedy,
                *(completion_seed(sampling.seed, prompt["id"], at) for at in range(sampling.k)),
            ),
        )
        for prompt in shard.prompts
    ]
    named = [*[(GREEDY, 0)] * sampling.greedy, *((sampling.tag, at) for at in range(sampling.k))]
    rows = [
        {
            "prompt_id": prompt["id"],
            "sample_index": index,
            "tag": tag,
            "prompt": prompt["prompt"],
            "completion": [{"role": "assistant", "content": completion.text}],
            "tokens": completion.tokens,
            "n_tokens": len(completion.tokens),
            "finish": completion.finish,
            "logprob": None if completion.logprobs is None else float(sum(completion.logprobs)),
            "columns": prompt["columns"],
            "rewards": None,
        }
        for prompt, completions in zip(shard.prompts, engine.generate(requests, sampling.params), strict=True)
        for (tag, index), completion in zip(named, completions, strict=True)
    ]
    table = judge(pa.Table.from_pylist(rows, schema=SAMPLES), shard.judges)
    return table.replace_schema_metadata({_FALLBACK: engine.fallback}) if engine.fallback else table


def sampled_slowly(samples: Path) -> dict[str, list[str]]:
    """For a stage's metrics, where the table's answers came from a slower engine than the recipe names: why."""
    reason = (pq.read_schema(samples).metadata or {}).get(_FALLBACK)
    return {"fallback": [f"answers are sampled one by one, which takes longer: {reason.decode()}"]} if reason else {}


def judge(samples: pa.Table, judges: Judges) -> pa.Table:
    """`samples` with its `rewards` column filled. Rows of one prompt must stand together."""
    rows = samples.select(["prompt_id", "prompt", "completion", "tokens", "columns"]).to_pylist()
    values = reward_values(rows, judges.rewards)
    if judges.reward_model is not None:
        values[REWARD_MODEL] = model_rewards(rows, judges.reward_model)
    names = list(values)
    column = [
        json.dumps(dict(zip(names, row, strict=True))) for row in zip(*(values[name] for name in names), strict=True)
    ]
    if not names:
        column = ["{}"] * len(rows)
    return samples.set_column(samples.schema.get_field_index("rewards"), "rewards", pa.array(column, pa.string()))


def start(functions: Sequence[Reward | JudgeReward]) -> None:
    """Begin the processes of the reward functions, whose imports then go on beside the sampling."""
    for one in functions:
        if isinstance(one, Reward):
            one.start()


def reward_values(
    rows: Sequence[Mapping[str, Any]], functions: Sequence[Reward | JudgeReward]
) -> dict[str, Sequence[float | None]]:
    """What each reward function says of each row: {reward name: one value or None a row}."""
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


def model_rewards(rows: Sequence[Mapping[str, Any]], reward_model: str) -> list[float]:
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
    scores = _scorer(reward_model).score(prompts, answers)
    values = [value for group in scores for value in group]
    for row, value in zip(rows, values, strict=True):
        if not math.isfinite(value):
            raise StageError(
                f"the reward model gave {value} to an answer to prompt {row['prompt_id']}, which is no finite number; "
                f"nothing was published. It was computed in float32, so its training, its weights or its config are at "
                f"fault: {reward_model}",
                rule="model-scores-not-finite",
            )
    return values


def scored_slowly(reward_model: str) -> list[str]:
    """For a stage's metrics: why this reward model scores in the slow way. Empty where it does not."""
    reason = _scorer(reward_model).fallback
    return [f"answers are scored one by one, which takes longer: {reason}"] if reason else []


def _rendered(
    tokenizer: Any, prompt: Sequence[Message], answers: Sequence[Sequence[Message]], tails: Tails
) -> tuple[list[int], list[list[int]]]:
    """The tokens of a prompt, and those that each answer adds to it."""
    if all(len(answer) == 1 for answer in answers):
        return render_answers(tokenizer, prompt, [answer[0]["content"] for answer in answers], tails)
    turns = [render_turns(tokenizer, prompt, answer) for answer in answers]  # those that people gave may have several
    return turns[0][0], [ids for _, ids, _ in turns]


def run_rollouts(
    shards: Sequence[Shard], scratch: Path, target: Path, workers: int, progress: Callable[[int, int, str], None]
) -> int:
    """Work off the shards (resuming in `scratch`) and join them into `target`. Returns the number of rows."""
    total, done = sum(len(shard.prompts) * (shard.sampling.k + shard.sampling.greedy) for shard in shards), 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        progress(done, total, "completions")

    try:
        served = any(shard.sampling.server for shard in shards)
        paths = run_shards(rollout, shards, scratch, processes(workers, served), count)
    finally:
        _close_servers()
    return concatenate(paths, target)


def processes(workers: int, served: bool = False) -> int:
    """A GPU is used by one process; it is full with one. So is a server: the threads of one process keep it busy."""
    return workers if device() == "cpu" and not served else 1


@functools.lru_cache(maxsize=2)
def _engine(policy: str, use: str, dtype: str, server: ServerSettings | None = None) -> Engine:
    if server is not None:
        from posttrain.engines.server import ServerEngine

        _servers.append(ServerEngine(policy, server))
        return _servers[-1]
    from posttrain.engines import load_engine

    return load_engine(policy, use, dtype, device())  # pyright: ignore[reportArgumentType] # checked by the recipe


# Those that this process uses now: each ends with the sampling that it is for, so that no two hold memory at once.
_servers: list[ServerEngine] = []


def _close_servers() -> None:
    if _servers:
        _engine.cache_clear()
    while _servers:
        _servers.pop().close()


@functools.lru_cache(maxsize=2)
def _scorer(path: str) -> Scorer:
    from posttrain.engines.reward_scorer import load_scorer

    return load_scorer(path, "float32", device())


@functools.lru_cache(maxsize=4)
def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)
