"""Scores every candidate: the weighted mean of the recipe's reward functions, judges and the round's reward model."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.data.tables import STEP_SCORES, column
from posttrain.errors import EmptyStageError
from posttrain.evaluation.statistics import known_mean
from posttrain.job import Job
from posttrain.rewards import prompt_stats
from posttrain.rewards.checks import check_scores, constant
from posttrain.rewards.combine import REWARD_MODEL, combine, spread
from posttrain.rewards.judge_cache import judge_metrics
from posttrain.rewards.scoring import load_scorers, score_shards

_STEPS = STEP_SCORES.field("step_scores")
_NAMED = ("prompt_id", "sample_index")
_NO_STEPS = "no step has a score: what scores them is trained in a round, and there was none before this one"


def run(job: Job) -> dict[str, Any]:
    """Inputs: answers; optional: reward_model, annotations, step_scores. Config: rewards; optional: columns (those of
    the annotations to add), step_scores (whether they are to be added). Writes scored.parquet: the answers with
    their `rewards` and `score`.

    Raises:
        EmptyStageError: no reward scores any answer, or all scores are equal and none counts as right.
    """
    scorers, weights = load_scorers(job)
    paths = score_shards(job, job.inputs["answers"] / "answers.parquet", scorers)
    values = [json.loads(text) for path in paths for text in column(path, "rewards")]
    mean, deviation = spread([row[REWARD_MODEL] for row in values if REWARD_MODEL in row])
    scores = [combine(row, weights, mean, deviation) for row in values]
    known_scores = [score for score in scores if score is not None]
    same = constant(values, list(weights))
    if not known_scores:
        raise EmptyStageError(
            "scores: no reward scores any sample; name a reward that scores these prompts, "
            "or give the recipe a reward_model section"
        )
    check_scores(known_scores, same)
    names, start = job.config.get("columns", []), 0
    known = _annotations(job)
    schema = prompt_stats.schema(pq.read_schema(paths[0]).append(pa.field("score", pa.float64())), names)
    steps = _step_scores(job)
    if steps is not None:
        schema = schema.append(_STEPS)
    with pq.ParquetWriter(job.out / "scored.parquet", schema, compression="zstd") as writer:
        for path in paths:
            table = pq.read_table(path)
            of_rows = pa.array(scores[start : start + table.num_rows], pa.float64())
            table = prompt_stats.annotated(table.append_column("score", of_rows), names, known)
            if steps is not None:
                keys = zip(*(table[name].to_pylist() for name in _NAMED), strict=True)
                of_steps = pa.array([steps[key] if steps else None for key in keys], _STEPS.type)
                table = table.append_column(_STEPS, of_steps)
            writer.write_table(table)
            start += table.num_rows
    return {
        "rows": len(scores),
        "unscored": len(scores) - len(known_scores),
        "mean": sum(known_scores) / len(known_scores),
        "rewards": {name: known_mean(row.get(name) for row in values) for name in weights},
        **({"constant": same} if same else {}),
        "logits": {"mean": mean, "deviation": deviation},
        **({"fallback": [_NO_STEPS]} if steps is not None and "step_scores" not in job.inputs else {}),
        **judge_metrics(job.scratch),
    }


def _step_scores(job: Job) -> dict[tuple[Any, ...], list[float | None] | None] | None:
    """The scores of each answer's steps, by prompt and sample; empty before there are any. None where the recipe has
    none."""
    if not job.config.get("step_scores"):
        return None
    if "step_scores" not in job.inputs:
        return {}
    rows = pq.read_table(job.inputs["step_scores"] / "step_scores.parquet").to_pylist()
    return {tuple(row[name] for name in _NAMED): row["step_scores"] for row in rows}


def _annotations(job: Job) -> dict[str, dict[str, Any]]:
    """The annotations by prompt id."""
    if "annotations" not in job.inputs:
        return {}
    return {
        row["prompt_id"]: row for row in pq.read_table(job.inputs["annotations"] / "annotations.parquet").to_pylist()
    }
