"""Scores each step of the round's samples: by a step reward model, or by a DPO policy and its reference, implicit
process rewards.

DPO fits a policy so that β (log π − log π_ref) of an answer is its reward, up to a constant of the prompt (Rafailov et
al. 2023). That is a sum over tokens, and its part within a step is what the step adds to it, a reward for steps for
which no step was ever labelled (Rafailov et al. 2024, arXiv 2404.12358; Yuan et al. 2024, arXiv 2412.01981).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from posttrain.data.chat_template import render_prompt
from posttrain.data.steps import tokens_of_steps
from posttrain.data.tables import STEP_SCORES
from posttrain.engines.detokenize import DECODE
from posttrain.engines.protocol import Ids
from posttrain.errors import EmptyStageError
from posttrain.evaluation.likelihood_shards import Continuations, Work, by_context, of_parts
from posttrain.evaluation.statistics import known_mean
from posttrain.filters.steps import weakest
from posttrain.job import Job
from posttrain.search.step_scorer import ByModel


def run(job: Job) -> dict[str, Any]:
    """Inputs: answers; policy (what DPO made) and reference (its reference), or step_reward. Config: step_ends,
    engine (use, dtype, shard_tokens), and with policy beta and temperature (DPO's). Writes step_scores.parquet: of each
    answer the score of each step, in its order, null for a step within another one's token; null for an answer without
    steps.

    Returns the number of `rows`, of those `without_steps`, the mean number of `steps`, and the mean `weakest`.

    Raises:
        EmptyStageError: no answer has a step.
    """
    by_model = "step_reward" in job.inputs
    tokenizer: Any = AutoTokenizer.from_pretrained(job.inputs["step_reward" if by_model else "policy"])
    columns = ["prompt_id", "sample_index", "prompt", "tokens"]
    rows = pq.read_table(job.inputs["answers"] / "answers.parquet", columns=columns).to_pylist()

    def decode(ids: Any) -> str:
        return tokenizer.decode(ids, **DECODE)

    parts = [tokens_of_steps(row["tokens"], decode, job.config["step_ends"]) for row in rows]
    with_steps = [at for at, sizes in enumerate(parts) if sizes]
    if not with_steps:
        raise EmptyStageError(
            f"step scores: none of {len(rows)} answers has a step, that is, a letter or digit. Look at the round's "
            "answers-samples, and at step_ends"
        )
    asked = [(tuple(render_prompt(tokenizer, rows[at]["prompt"])), tuple(rows[at]["tokens"])) for at in with_steps]
    sizes = [parts[at] for at in with_steps]
    found = (_by_model if by_model else _by_dpo)(job, asked, sizes)
    scores: list[list[float | None] | None] = [None] * len(rows)
    for at, tokens, some in zip(with_steps, sizes, found, strict=True):
        scores[at] = [score if count else None for count, score in zip(tokens, some, strict=True)]
    made = [{**row, "step_scores": score} for row, score in zip(rows, scores, strict=True)]
    pq.write_table(pa.Table.from_pylist(made, schema=STEP_SCORES), job.out / "step_scores.parquet", compression="zstd")
    return {
        "rows": len(rows),
        "without_steps": len(rows) - len(with_steps),
        "steps": sum(map(len, sizes)) / len(sizes),
        "weakest": known_mean(weakest(score) for score in scores),
    }


Asked = tuple[Ids, Ids]  # the prompt and the answer, as token ids


def _by_dpo(job: Job, asked: Sequence[Asked], sizes: Sequence[Sequence[int]]) -> list[list[float]]:
    engine, progress = job.config["engine"], job.counter(2 * len(asked), "answers")

    def log_likelihoods(role: str) -> list[list[float]]:
        scratch = job.scratch / role  # of its own: the texts are the same for both
        work = Work(job.inputs[role], scratch, job.workers, engine, engine["shard_tokens"], progress)
        return of_parts(asked, sizes, work, job.config["temperature"])

    return [
        [job.config["beta"] * (one - other) for one, other in zip(*both, strict=True)]
        for both in zip(log_likelihoods("policy"), log_likelihoods("reference"), strict=True)
    ]


@dataclass(frozen=True)
class _Shard:
    """Prompts with their answers, whose parts are the steps."""

    model: str
    dtype: str
    texts: tuple[Continuations, ...]


def _by_model(job: Job, asked: Sequence[Asked], sizes: Sequence[Sequence[int]]) -> list[list[float]]:
    """A step without a token of its own has the score of the one before it, or 0."""
    engine, count = job.config["engine"], job.counter(len(asked), "answers")
    texts = sorted(by_context(asked, list(map(tuple, sizes))), key=lambda one: (len(one.context), one.context))
    work = Work(job.inputs["step_reward"], job.scratch, job.workers, engine, engine["shard_tokens"], count)
    parts = work.parts([len(one.context) + sum(map(len, one.continuations)) for one in texts])
    shards = [_Shard(str(job.inputs["step_reward"]), engine["dtype"], tuple(texts[part])) for part in parts]
    return [row["scores"] for row in work.rows(_logits, shards, [[*map(list, one)] for one in asked])]


def _logits(shard: _Shard) -> pa.Table:
    ends = [[list(accumulate(parts)) for parts in text.parts] for text in shard.texts]
    prefixes = [
        [answer[:end] for answer, some in zip(text.continuations, of_answers, strict=True) for end in some if end]
        for text, of_answers in zip(shard.texts, ends, strict=True)
    ]
    scored = ByModel(shard.model, shard.dtype)([text.context for text in shard.texts], prefixes)
    rows = []
    for text, of_answers, logits in zip(shard.texts, ends, scored, strict=True):
        values = iter(logits)
        rows += [
            {"place": place, "scores": [next(values) if end else 0.0 for end in some]}
            for place, some in zip(text.places, of_answers, strict=True)
        ]
    return pa.Table.from_pylist(rows, schema=pa.schema([("place", pa.int64()), ("scores", pa.list_(pa.float64()))]))
