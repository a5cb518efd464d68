"""Selects the prompts of a round: those of a pool whose pass rate with the last policy is nearest to the target.

Llama 3, section 4.2.1: prompts get harder as the model gets better. Measuring by pass rate is ours. Prompts not taken
wait until the stream of prompts repeats.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.data.selection import nearest, take
from posttrain.data.tables import by_prompt
from posttrain.evaluation.statistics import known_mean
from posttrain.job import Job
from posttrain.rewards.combine import RIGHT, combine
from posttrain.rewards.scoring import load_scorers, score_table


def run(job: Job) -> dict[str, Any]:
    """Inputs: prompts, answers (to the pool). Config: wanted (target pass rate), count (prompts to take), take (the
    pool), rewards. Writes taken.parquet: prompt_id, pass_rate.
    """
    pool = take(pq.read_table(job.inputs["prompts"] / "train.parquet").to_pylist(), **job.config["take"])
    scorers, weights = load_scorers(job)
    tried = score_table(job, job.inputs["answers"] / "answers.parquet", scorers, job.scratch / "scored.parquet")
    found: dict[str, float | None] = {}
    for rows in by_prompt(tried, ["prompt_id", "tag", "rewards"]):
        scores = [combine(row["rewards"], weights) for row in rows]
        found[rows[0]["prompt_id"]] = known_mean(None if score is None else score >= RIGHT for score in scores)
    rates = [(prompt["id"], found[prompt["id"]]) for prompt in pool]
    taken = nearest(rates, job.config["wanted"], job.config["count"])
    table = pa.table({"prompt_id": taken, "pass_rate": pa.array([found[name] for name in taken], pa.float64())})
    pq.write_table(table, job.out / "taken.parquet")
    return {
        "pool": len(pool),
        "taken": len(taken),
        "pass_rate": {"pool": known_mean(found.values()), "taken": known_mean(found[name] for name in taken)},
    }
