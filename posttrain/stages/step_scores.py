"""Scores each step of the round's samples by a DPO policy and its reference: implicit process rewards.

DPO fits a policy so that β (log π − log π_ref) of an answer is its reward, up to a constant of the prompt (Rafailov et
al. 2023). That is a sum over tokens, and its part within a step is what the step adds to it, a reward for steps for
which no step was ever labelled (Rafailov et al. 2024, arXiv 2404.12358; Yuan et al. 2024, arXiv 2412.01981).
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from posttrain.config import StepScores
from posttrain.data.chat_template import render_prompt
from posttrain.data.steps import tokens_of_steps
from posttrain.data.tables import STEP_SCORES
from posttrain.engines.detokenize import DECODE
from posttrain.errors import EmptyStageError
from posttrain.evaluation.likelihood_shards import Work, of_parts
from posttrain.evaluation.statistics import known_mean
from posttrain.filters.steps import weakest
from posttrain.job import Job


def run(job: Job) -> dict[str, Any]:
    """Inputs: answers, policy (what DPO made), reference (its reference). Config: step_scores, beta and temperature
    (DPO's), engine (use, dtype, shard_tokens). Writes step_scores.parquet: of each answer the score of each step, in
    its order, null for a step within another one's token; null for an answer without steps.

    Returns the number of `rows`, of those `without_steps`, the mean number of `steps`, and the mean `weakest`.

    Raises:
        EmptyStageError: no answer has a step.
    """
    section, engine = job.section("step_scores", StepScores), job.config["engine"]
    tokenizer: Any = AutoTokenizer.from_pretrained(job.inputs["policy"])
    columns = ["prompt_id", "sample_index", "prompt", "tokens"]
    rows = pq.read_table(job.inputs["answers"] / "answers.parquet", columns=columns).to_pylist()

    def decode(ids: Any) -> str:
        return tokenizer.decode(ids, **DECODE)

    parts = [tokens_of_steps(row["tokens"], decode, section.separator) for row in rows]
    with_steps = [at for at, sizes in enumerate(parts) if sizes]
    if not with_steps:
        raise EmptyStageError(
            f"step scores: none of {len(rows)} answers has a step, that is, a letter or digit. Look at the round's "
            "answers-samples, and at step_scores.separator"
        )
    asked = [(tuple(render_prompt(tokenizer, rows[at]["prompt"])), tuple(rows[at]["tokens"])) for at in with_steps]
    sizes, progress = [parts[at] for at in with_steps], job.counter(2 * len(asked), "answers")

    def log_likelihoods(role: str) -> list[list[float]]:
        scratch = job.scratch / role  # of its own: the texts are the same for both
        work = Work(job.inputs[role], scratch, job.workers, engine, engine["shard_tokens"], progress)
        return of_parts(asked, sizes, work, job.config["temperature"])

    scores: list[list[float | None] | None] = [None] * len(rows)
    found = zip(with_steps, sizes, log_likelihoods("policy"), log_likelihoods("reference"), strict=True)
    for at, tokens, by_policy, by_reference in found:
        both = zip(tokens, by_policy, by_reference, strict=True)
        scores[at] = [job.config["beta"] * (one - other) if count else None for count, one, other in both]
    made = [{**row, "step_scores": score} for row, score in zip(rows, scores, strict=True)]
    pq.write_table(pa.Table.from_pylist(made, schema=STEP_SCORES), job.out / "step_scores.parquet", compression="zstd")
    return {
        "rows": len(rows),
        "without_steps": len(rows) - len(with_steps),
        "steps": sum(map(len, sizes)) / len(sizes),
        "weakest": known_mean(weakest(score) for score in scores),
    }
