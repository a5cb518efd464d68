"""Pairs from the policy that SFT just made: K answers to each prompt, the best against the worst by score."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.config import Pairs
from posttrain.data.pairs import best_worst_pairs
from posttrain.data.selection import take
from posttrain.data.tables import PAIRS, by_prompt
from posttrain.engines.protocol import SamplingParams
from posttrain.errors import EmptyStageError
from posttrain.job import Job
from posttrain.rewards.checks import check_not_empty
from posttrain.rewards.combine import REWARD_MODEL, combine, spread
from posttrain.rewards.judge_cache import told
from posttrain.rollouts import Sampling, engine, judges, plan, run_rollouts, sampled_by


def run(job: Job) -> dict[str, Any]:
    """Inputs: prompts, policy, reward_model (optional). Config: pairs, rewards, engine, take. Writes pairs.parquet.

    Raises:
        StageError: nearly all answers are empty.
        EmptyStageError: no two answers to any prompt differ by the margin.
    """
    section = job.section("pairs", Pairs)
    prompts = take(pq.read_table(job.inputs["prompts"] / "train.parquet").to_pylist(), **job.config["take"])
    scoring, weights = judges(job)
    sampling = Sampling(
        str(job.inputs["policy"]),
        SamplingParams(section.temperature, section.max_new_tokens),
        section.k,
        job.seed,
        "policy",
        **engine(job),
    )
    rows_path = job.scratch / "samples.parquet"
    shards = plan(prompts, sampling, scoring, job.config["engine"]["shard_prompts"])
    run_rollouts(shards, job.scratch / "shards", rows_path, job.workers, job.progress)
    check_not_empty(rows_path, job.inputs["policy"])
    columns = ["prompt_id", "prompt", "completion", "columns", "rewards"]
    logits = [
        row["rewards"][REWARD_MODEL]
        for rows in by_prompt(rows_path, columns)
        for row in rows
        if REWARD_MODEL in row["rewards"]
    ]
    normal = spread(logits)
    groups = (
        [{**row, "score": combine(row["rewards"], weights, *normal)} for row in rows]
        for rows in by_prompt(rows_path, columns)
    )
    pairs = list(best_worst_pairs(groups, section.margin, "pairs"))
    if not pairs:
        raise EmptyStageError(
            f"pairs: no pair is left: no two of {section.k} answers to any of {len(prompts)} prompts differ by "
            f"{section.margin} or more in score; raise pairs.k or lower pairs.margin"
        )
    pq.write_table(pa.Table.from_pylist(pairs, schema=PAIRS), job.out / "pairs.parquet")
    return {"prompts": len(prompts), "pairs": len(pairs), **sampled_by(job), **told(job.scratch)}
