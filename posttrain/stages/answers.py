"""Samples K answers of one policy to prompts of one set, in every role. Scoring and evaluation read this table, so that
an edited reward samples nothing again (Llama 3, section 4.2.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from posttrain.data.selection import matching, take
from posttrain.data.tables import column
from posttrain.engines.protocol import SamplingParams
from posttrain.job import Job
from posttrain.rewards.checks import check_not_empty
from posttrain.rollouts import Sampling, engine, plan, run_rollouts, sampled_by, sampled_slowly
from posttrain.seeds import derive_seed


def run(job: Job) -> dict[str, Any]:
    """Inputs: prompts, policy, difficulty (optional: its prompts in place of `take`). Config: set (train, dev or
    heldout); where, take (of a training set); answers (k, temperature, top_p, max_new_tokens), tag (of the K answers),
    greedy (whether a greedy answer precedes them), further (temperatures with K // 2 answers each, under the tag
    `T=0.7`), system (None: no message), hint (a column; absent: none); engine. Writes answers.parquet: see ANSWERS.

    Raises:
        DataError: no prompt matches `where`.
        StageError: nearly all answers to training prompts are empty.
    """
    prompts, settings = prompts_of(job), samplings(job)
    size = job.config["engine"]["shard_tokens"]
    shards = [shard for one in settings for shard in plan(prompts, one, size)]
    target = job.out / "answers.parquet"
    count = run_rollouts(shards, job, target)
    if job.config["set"] == "train":
        check_not_empty(target, job.inputs["policy"])
    lengths = column(target, "n_tokens")
    return {
        "prompts": len(prompts),
        "completions": count,
        "tokens": sum(lengths),
        "mean_length": sum(lengths) / count,
        "finished": column(target, "finish").count("stop") / count,
        **sampled_by(job),
        **sampled_slowly(target),
    }


def prompts_of(job: Job) -> Sequence[Mapping[str, Any]]:
    """The prompts that the job's answers are to, in no order that matters: rows of the prompts' table."""
    prompts: list[Mapping[str, Any]] = pq.read_table(job.inputs["prompts"] / f"{job.config['set']}.parquet").to_pylist()
    if "difficulty" in job.inputs:
        wanted = set(column(job.inputs["difficulty"] / "taken.parquet", "prompt_id"))
        return [prompt for prompt in prompts if prompt["id"] in wanted]
    return take(matching(prompts, job.config["where"]), **job.config["take"]) if "take" in job.config else prompts


def samplings(job: Job) -> list[Sampling]:
    """The K answers, and K // 2 at each further temperature."""
    policy, asked = str(job.inputs["policy"]), job.config["answers"]
    given = {name: job.config[name] for name in ("tag", "greedy", "system")}
    options = {**given, "hint": job.config.get("hint"), **engine(job)}
    params = SamplingParams(asked["temperature"], asked["max_new_tokens"], asked["top_p"])
    settings = [Sampling(policy, params, asked["k"], job.seed, **options)]
    for temperature in job.config["further"]:
        tag, params = f"T={temperature}", replace(params, temperature=temperature)
        options |= {"tag": tag, "greedy": False}
        settings.append(Sampling(policy, params, max(1, asked["k"] // 2), derive_seed(job.seed, tag), **options))
    return settings
