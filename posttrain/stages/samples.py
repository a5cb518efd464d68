"""Rejection sampling, first half: K completions of each of the round's prompts (Llama 3, section 4.2.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from posttrain.config import Samples
from posttrain.data.selection import take
from posttrain.engines.protocol import SamplingParams
from posttrain.job import Job
from posttrain.rewards.checks import check_not_empty
from posttrain.rollouts import Judges, Sampling, engine, plan, run_rollouts, sampled_by, sampled_slowly


def run(job: Job) -> dict[str, Any]:
    """Inputs: prompts, policy, difficulty (none: the prompts come as `take` says). Config: samples, engine, take,
    system (None: no message). Writes samples.parquet.

    Raises:
        StageError: nearly all answers are empty.
    """
    section = job.section("samples", Samples)
    prompts: Sequence[Mapping[str, Any]] = pq.read_table(job.inputs["prompts"] / "train.parquet").to_pylist()
    if "difficulty" in job.inputs:
        wanted = set(pq.read_table(job.inputs["difficulty"] / "taken.parquet")["prompt_id"].to_pylist())
        prompts = [prompt for prompt in prompts if prompt["id"] in wanted]
    else:
        prompts = take(prompts, **job.config["take"])
    sampling = Sampling(
        policy=str(job.inputs["policy"]),
        params=SamplingParams(section.temperature, section.max_new_tokens, section.top_p),
        k=section.k,
        seed=job.seed,
        system=job.config["system"],
        **engine(job),
    )
    shards = plan(prompts, sampling, Judges(), job.config["engine"]["shard_prompts"])
    target = job.out / "samples.parquet"
    count = run_rollouts(shards, job.scratch / "shards", target, job.workers, job.progress)
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
