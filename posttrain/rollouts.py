"""Samples answers of a policy, shard by shard.

A shard is plain data, so that any process can take it. Engines and tokenizers are loaded once per process and kept.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.data.chat_template import render_prompt
from posttrain.data.messages import Message, hinted, under
from posttrain.data.tables import ANSWERS, GREEDY
from posttrain.engines.protocol import Completion, Engine, Request, SamplingParams, completion_seed
from posttrain.engines.server_dialects import DIALECTS, ServerSettings
from posttrain.job import Job
from posttrain.storage.pieces import by_work
from posttrain.storage.shards import concatenate, processes, run_shards
from posttrain.system import device, gpus

_FALLBACK = b"fallback"  # among a table's own words: why the engine was not the one that was asked for


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled. `use` and `dtype` as in the recipe's `engine`, `server` as `engine` gives it.
    `system`: the system message for prompts without their own; `hint`: the column with a text to put below the prompt.
    The rows hold the prompts without both. `greedy`: also a greedy completion, before the K, under the tag GREEDY:
    together with them it costs little."""

    policy: str
    params: SamplingParams
    k: int
    seed: int
    tag: str = ""
    use: str = "shared-prefix"
    dtype: str = "auto"
    server: ServerSettings | None = None
    system: str | None = None
    hint: str | None = None
    greedy: bool = False

    @property
    def named(self) -> list[tuple[str, int]]:
        """Tag and index of each answer to a prompt, in order."""
        return [*[(GREEDY, 0)] * self.greedy, *((self.tag, at) for at in range(self.k))]


def engine(job: Job) -> dict[str, Any]:
    """The engine in the job's config and runtime: `use`, `dtype` and `server` of a Sampling."""
    config, server = job.config["engine"], job.runtime.get("server")
    settings = None
    if server is not None:
        start = tuple(server["start"]) if server["start"] else None
        log = str(job.scratch / "server.log")
        settings = ServerSettings(server["kind"], start, server["url"], log, server.get("devices"))
    return {"use": config["use"], "dtype": config["dtype"], "server": settings}


def sampled_by(job: Job) -> dict[str, Any]:
    """For a stage's metrics, if a server sampled: its kind, and whether results are reproducible; `faults`, if any:
    rejected replies by rule."""
    kind = job.config["engine"].get("server")
    if kind is None:
        return {}
    from posttrain.engines.server import faults_in

    can, faults = DIALECTS[kind].capabilities, faults_in(job.scratch)
    figures = {"server": kind, "seeds": can.seeds, "token_ids": can.token_ids, "same_bits_again": False}
    return {"engine": figures | ({"faults": faults} if faults else {})}


@dataclass(frozen=True)
class Shard:
    """A slice of prompts (rows with id, prompt, columns) to sample, and the token ids of each as the policy sees it."""

    prompts: tuple[Mapping[str, Any], ...]
    ids: tuple[tuple[int, ...], ...]
    sampling: Sampling

    @property
    def completions(self) -> int:
        """How many it asks for."""
        return len(self.prompts) * (self.sampling.k + self.sampling.greedy)


def plan(prompts: Sequence[Mapping[str, Any]], sampling: Sampling, shard_tokens: int) -> list[Shard]:
    """Shards of about equal work, with at most `shard_tokens` tokens: the prompts' and `max_new_tokens` per answer.
    Prompts of similar length are grouped, so that there is little padding.

    The plan depends on prompts and recipe alone, not on the machine or the number of processes.
    """
    tokenizer = cached_tokenizer(sampling.policy)
    rendered = [(tuple(render_prompt(tokenizer, steered(row, sampling.system, sampling.hint))), row) for row in prompts]
    rendered.sort(key=lambda one: (len(one[0]), one[1]["id"]))
    longest = (sampling.k + sampling.greedy) * sampling.params.max_new_tokens
    parts = by_work([len(ids) + longest for ids, _ in rendered], shard_tokens)
    return [
        Shard(tuple(row for _, row in rendered[part]), tuple(ids for ids, _ in rendered[part]), sampling)
        for part in parts
    ]


def steered(row: Mapping[str, Any], system: str | None, hint: str | None) -> list[Message]:
    """A prompt as the policy sees it. row: with `prompt` and `columns`; system, hint: as of `Sampling`."""
    text = json.loads(row["columns"]).get(hint) if hint else None
    return under(system, hinted(text, row["prompt"]))


def rollout(shard: Shard, engine: Engine | None = None) -> pa.Table:
    """K completions of each of the shard's prompts, as ANSWERS. Rows: prompt by prompt, each in order. `engine`: where
    it is not the one that this process keeps."""
    sampling = shard.sampling
    engine = engine or cached_engine(sampling.policy, sampling.use, sampling.dtype)
    requests = [
        Request(
            ids,
            (
                *[None] * sampling.greedy,
                *(completion_seed(sampling.seed, prompt["id"], at) for at in range(sampling.k)),
            ),
        )
        for ids, prompt in zip(shard.ids, shard.prompts, strict=True)
    ]
    rows = [
        answer_row(prompt["id"], prompt, completion, tag, index)
        for prompt, completions in zip(shard.prompts, engine.generate(requests, sampling.params), strict=True)
        for (tag, index), completion in zip(sampling.named, completions, strict=True)
    ]
    table = pa.Table.from_pylist(rows, schema=ANSWERS)
    return table.replace_schema_metadata({_FALLBACK: engine.fallback}) if engine.fallback else table


def answer_row(
    prompt_id: str, asked: Mapping[str, Any], completion: Completion, tag: str, index: int
) -> dict[str, Any]:
    """A row of ANSWERS. `asked`: with the `prompt` and its `columns`."""
    return {
        "prompt_id": prompt_id,
        "sample_index": index,
        "tag": tag,
        "prompt": asked["prompt"],
        "completion": [{"role": "assistant", "content": completion.text}],
        "tokens": completion.tokens,
        "n_tokens": len(completion.tokens),
        "finish": completion.finish,
        "logprob": None if completion.logprobs is None else float(sum(completion.logprobs)),
        "columns": asked["columns"],
    }


def sampled_slowly(answers: Path) -> dict[str, list[str]]:
    """For a stage's metrics: why a slower engine than the recipe's sampled the answers; empty if none did."""
    reason = (pq.read_schema(answers).metadata or {}).get(_FALLBACK)
    return {"fallback": [f"answers are sampled one by one, which takes longer: {reason.decode()}"]} if reason else {}


def run_rollouts(shards: Sequence[Shard], job: Job, target: Path) -> int:
    """Work off the shards, going on with those of the same plan in the job's scratch, and join them into `target`.
    Returns the number of rows."""
    planned = json.dumps([[row["id"] for row in shard.prompts] for shard in shards])
    scratch = job.scratch / "shards" / hashlib.sha256(planned.encode()).hexdigest()[:16]
    count = job.counter(sum(shard.completions for shard in shards), "completions")
    policy, server = next(((one.sampling.policy, one.sampling.server) for one in shards), ("", None))
    if server is None:
        return concatenate(run_shards(rollout, shards, scratch, processes(job.workers), count, part=job.part), target)
    from posttrain.engines.server import ServerEngine

    # As many shards at a time as fill a server, and one more: the next one's requests go out before the last one's
    # longest answer is there.
    threads = 1 + math.ceil(DIALECTS[server.kind].at_once / min(shard.completions for shard in shards))
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(contextlib.closing(ServerEngine(policy, one))) for one in server.each(gpus())]
        turns = itertools.cycle(engines)

        def by_turns(shard: Shard) -> pa.Table:
            return rollout(shard, next(turns))

        return concatenate(run_shards(by_turns, shards, scratch, 1, count, threads * len(engines), job.part), target)


@functools.lru_cache(maxsize=2)
def cached_engine(policy: str, use: str, dtype: str) -> Engine:
    """The built-in engine on a model folder, kept in this process."""
    from posttrain.engines import load_engine

    return load_engine(policy, use, dtype, device())  # pyright: ignore[reportArgumentType] # checked by the recipe


@functools.lru_cache(maxsize=4)
def cached_tokenizer(path: str) -> Any:
    """The tokenizer of a model folder, kept in this process."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)
