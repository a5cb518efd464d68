"""On-policy pairs from the round's SFT model: of K answers to a prompt, the best against the worst by score."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.data.pairs import best_worst_pairs
from posttrain.data.tables import PAIRS, by_prompt, column
from posttrain.errors import EmptyStageError
from posttrain.job import Job
from posttrain.rewards.combine import REWARD_MODEL, combine, spread
from posttrain.rewards.judge_cache import judge_metrics
from posttrain.rewards.scoring import load_scorers, score_table


def run(job: Job) -> dict[str, Any]:
    """Inputs: answers, reward_model (optional). Config: margin, rewards. Writes pairs.parquet.

    Raises:
        EmptyStageError: no two answers to any prompt differ by the margin.
    """
    scorers, weights = load_scorers(job)
    margin = job.config["margin"]
    rows_path = score_table(job, job.inputs["answers"] / "answers.parquet", scorers, job.scratch / "scored.parquet")
    columns = ["prompt_id", "prompt", "completion", "finish", "columns", "rewards"]
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
    pairs = list(best_worst_pairs(groups, margin, "pairs"))
    ids = column(rows_path, "prompt_id")
    prompts = len(set(ids))
    if not pairs:
        k = len(ids) // prompts
        raise EmptyStageError(
            f"pairs: no pair is left: no two of {k} answers to any of {prompts} prompts differ by "
            f"{margin} or more in score; raise pairs.k or lower pairs.margin"
        )
    pq.write_table(pa.Table.from_pylist(pairs, schema=PAIRS), job.out / "pairs.parquet")
    return {"prompts": prompts, "pairs": len(pairs), **judge_metrics(job.scratch)}
