"""Looks for right answers to the prompts that no sample of the round solved, by Monte Carlo tree search or beam search
over steps (Llama 3, section 4.3.3), and puts those that the checker accepts beside the samples.

Sampling, checking and scoring of steps: `posttrain.search`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from posttrain.config.search import Search
from posttrain.data.chat_template import render_prompt
from posttrain.data.pairs import pair_row
from posttrain.data.tables import PAIRS, SEARCHED, by_prompt
from posttrain.evaluation.likelihood_shards import Work
from posttrain.job import Job
from posttrain.models import context_length
from posttrain.rewards.combine import RIGHT, combine, of_functions
from posttrain.rewards.scoring import Scorers, load_scorers, row_values
from posttrain.search.searching import ROOM, Asked, Shard, search
from posttrain.search.step_scorer import StepScorer
from posttrain.seeds import derive_seed
from posttrain.storage import store
from posttrain.storage.files import read_json

_TABLE, SEARCH = "scored.parquet", "search"
_UNCHECKED = "nothing is searched for: no reward function says which samples are right"


def run(job: Job) -> dict[str, Any]:
    """Inputs: samples (scored), policy (what sampled them); optional: reward_model, step_policy and step_reference (a
    DPO policy and its reference, which score steps). Config: search, rewards, engine (use, dtype, shard_tokens), and
    with step_policy beta and temperature, as in DPO's loss. Writes scored.parquet: the samples, with a row tagged
    SEARCHED for each answer that was found; and pairs.parquet, each of those over a wrong answer that begins like it.

    Returns how many `prompts` are of each kind, and what the search sampled and found.
    """
    section, engine = job.section("search", Search), job.config["engine"]
    scorers, weights = load_scorers(job)
    asked, prompts = _asked(job, section, of_functions(weights))
    count = job.counter(len(asked), "prompts")
    work = Work(job.inputs["policy"], job.scratch, job.workers, engine, engine["shard_tokens"], count)
    parts = work.parts([len(one.ids) + section.tokens for one in asked]) if asked else []
    how = str(job.inputs["policy"]), engine["use"], engine["dtype"], job.seed
    checker = scorers.rewards, of_functions(weights), _scorer(job)
    shards = [Shard(tuple(asked[part]), section, *how, *checker) for part in parts]
    rows = work.rows(search, shards, [[one.row["prompt_id"], one.ids] for one in asked])
    solved = [(asked[row["place"]].row, row) for row in rows if row["found"] is not None]
    found, pairs = _scored(solved, scorers, weights, _logits(job))
    total = _write(job, found)
    pq.write_table(pa.Table.from_pylist(pairs, schema=PAIRS), job.out / "pairs.parquet", compression="zstd")
    tokens = sum(row["sampled"] for row in rows)
    return {
        "rows": total,
        "prompts": {**prompts, "solved": len(solved)},
        "pairs": len(pairs),
        "tokens": tokens,
        "answers": sum(row["answers"] for row in rows),
        "unchecked": sum(row["unchecked"] for row in rows),
        "tokens_a_solution": tokens / len(solved) if solved else None,
        **({"fallback": [_UNCHECKED]} if prompts["unchecked"] and not asked else {}),
    }


def _asked(job: Job, section: Search, weights: Mapping[str, float]) -> tuple[list[Asked], dict[str, int]]:
    """The prompts to search for, in the order of a draw by the seed; and how many there are of each kind: `asked`,
    `right` (a sample is), `unchecked` (no function scores a sample), `too_long`, and `left_out` beyond
    `search.prompts`. `weights`: of the functions."""
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["policy"])
    room = context_length(job.inputs["policy"]) - section.max_new_tokens - ROOM
    rows, counts = list[tuple[dict[str, Any], tuple[int, ...]]](), Counter[str](right=0, unchecked=0, too_long=0)
    for answers in by_prompt(job.inputs["samples"] / _TABLE, ["prompt_id", "prompt", "rewards", "columns"]):
        verdicts = [verdict for row in answers if (verdict := combine(row["rewards"], weights)) is not None]
        ids = tuple(render_prompt(tokenizer, answers[0]["prompt"]))
        if not verdicts:
            counts["unchecked"] += 1
        elif max(verdicts) >= RIGHT:
            counts["right"] += 1
        elif len(ids) > room:
            counts["too_long"] += 1
        else:
            rows.append(({name: answers[0][name] for name in ("prompt_id", "prompt", "columns")}, ids))
    rows.sort(key=lambda one: derive_seed(job.seed, "prompts", one[0]["prompt_id"]))
    chosen = rows[: section.prompts]
    asked = [Asked(place, row, ids) for place, (row, ids) in enumerate(chosen)]
    return asked, {"asked": len(asked), **counts, "left_out": len(rows) - len(chosen)}


def _scorer(job: Job) -> StepScorer | None:
    if "step_policy" not in job.inputs:
        return None
    policy, reference = (str(job.inputs[name]) for name in ("step_policy", "step_reference"))
    return StepScorer(policy, reference, job.config["engine"]["dtype"], job.config["beta"], job.config["temperature"])


def _logits(job: Job) -> tuple[float, float]:
    """Mean and deviation of the reward model's logits of the samples, by which those of answers found are scaled."""
    logits = read_json(job.inputs["samples"] / store.MANIFEST)["metrics"]["logits"]
    return logits["mean"], logits["deviation"]


def _scored(
    solved: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    scorers: Scorers,
    weights: Mapping[str, float],
    logits: tuple[float, float],
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The answer that was found to each prompt, by its id, as columns of a scored sample; and the rows of PAIRS.
    `solved`: prompts, each with its row of FOUND."""
    both = [
        {**asked, "completion": [{"role": "assistant", "content": row[text]}], "tokens": row[tokens]}
        for asked, row in solved
        for tokens, text in (("found", "text"), ("wrong", "wrong_text"))
        if row[tokens] is not None
    ]
    given = iter(zip(both, row_values(both, scorers) if both else [], strict=True))
    found, pairs = dict[str, dict[str, Any]](), list[dict[str, Any]]()
    for asked, row in solved:
        chosen, values = next(given)
        score = combine(values, weights, *logits)
        found[asked["prompt_id"]] = {
            "completion": chosen["completion"],
            "tokens": row["found"],
            "n_tokens": len(row["found"]),
            "rewards": json.dumps(values),
            "score": score,
            "step_scores": row["step_scores"],
        }
        if row["wrong"] is not None:
            rejected, values = next(given)
            other = combine(values, weights, *logits)
            if score is not None and other is not None:
                pairs.append(pair_row({**chosen, "score": score}, {**rejected, "score": other}, SEARCH))
    return found, pairs


def _write(job: Job, found: Mapping[str, Mapping[str, Any]]) -> int:
    """Writes the samples with the answers that were found, each below its prompt's. Returns the number of rows."""
    source = pq.ParquetFile(job.inputs["samples"] / _TABLE)
    total, schema = 0, source.schema_arrow
    rows = (row for batch in source.iter_batches(4096) for row in batch.to_pylist())
    with pq.ParquetWriter(job.out / _TABLE, schema, compression="zstd") as writer:
        for some in _batches(rows, found):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
            total += len(some)
    return total


def _batches(rows: Iterator[dict[str, Any]], found: Mapping[str, Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    made: list[dict[str, Any]] = []
    for prompt_id, group in groupby(rows, key=lambda row: row["prompt_id"]):
        samples = list(group)
        made += samples
        if prompt_id in found:
            index = 1 + max(row["sample_index"] for row in samples)
            fresh = {"sample_index": index, "tag": SEARCHED, "finish": "stop", "logprob": None}
            made.append({**samples[0], **fresh, **found[prompt_id]})
        if len(made) >= 4096:
            yield made
            made = []
    yield made
