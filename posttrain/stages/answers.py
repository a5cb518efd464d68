"""Samples K answers of one policy to prompts of one set, in every role. Scoring and evaluation read this table, so that
an edited reward samples nothing again (Llama 3, section 4.2.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from posttrain.data.selection import matching, take
from posttrain.engines.protocol import SamplingParams
from posttrain.job import Job
from posttrain.rewards.checks import check_not_empty
from posttrain.rollouts import Sampling, engine, plan, run_rollouts, sampled_by, sampled_slowly
from posttrain.seeds import derive_seed


def run(job: Job) -> dict[str, Any]:
    """Inputs: prompts, policy, difficulty (optional: its prompts in place of `take`). Config: set (train, dev or
    heldout); where, take (of a training set); answers (k, temperature, top_p, max_new_tokens), tag (of the K answers),
    greedy (whether a greedy answer precedes them), further (temperatures with K // 2 answers each, under the tag
    `T=0.7`), system (None: no message); engine. Writes answers.parquet: see ANSWERS.

    Raises:
        DataError: no prompt matches `where`.
        StageError: nearly all answers to training prompts are empty.
    """
    prompts = _prompts(job)
    settings = [_sampling(job, job.config["tag"], job.seed, **job.config["answers"], greedy=job.config["greedy"])]
    for temperature in job.config["further"]:
        tag = f"T={temperature}"
        half = {**job.config["answers"], "k": max(1, settings[0].k // 2), "temperature": temperature}
        settings.append(_sampling(job, tag, derive_seed(job.seed, tag), **half))
    size = job.config["engine"]["shard_tokens"]
    shards = [shard for one in settings for shard in plan(prompts, one, size)]
    target = job.out / "answers.parquet"
    count = run_rollouts(shards, job, target)
    if job.config["set"] == "train":
        check_not_empty(target, job.inputs["policy"])
    table = pq.read_table(target, columns=["n_tokens", "finish"])
    lengths = table["n_tokens"].to_pylist()
    return {
        "prompts": len(prompts),
        "completions": count,
        "tokens": sum(lengths),
        "mean_length": sum(lengths) / count,
        "finished": table["finish"].to_pylist().count("stop") / count,
        **sampled_by(job),
        **sampled_slowly(target),
    }


def _prompts(job: Job) -> Sequence[Mapping[str, Any]]:
    prompts: list[Mapping[str, Any]] = pq.read_table(job.inputs["prompts"] / f"{job.config['set']}.parquet").to_pylist()
    if "difficulty" in job.inputs:
        wanted = set(pq.read_table(job.inputs["difficulty"] / "taken.parquet")["prompt_id"].to_pylist())
        return [prompt for prompt in prompts if prompt["id"] in wanted]
    return take(matching(prompts, job.config["where"]), **job.config["take"]) if "take" in job.config else prompts


def _sampling(
    job: Job, tag: str, seed: int, k: int, temperature: float, top_p: float, max_new_tokens: int, greedy: bool = False
) -> Sampling:
    return Sampling(
        policy=str(job.inputs["policy"]),
        params=SamplingParams(temperature, max_new_tokens, top_p),
        k=k,
        seed=seed,
        tag=tag,
        greedy=greedy,
        system=job.config["system"],
        **engine(job),
    )
