"""Looks for right answers to the prompts that no sample of the round solved, by Monte Carlo tree search or beam search
over steps (Llama 3, section 4.3.3), and puts those that the checker accepts beside the samples.

Sampling, checking and scoring of steps: `posttrain.search`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from posttrain.config import Search
from posttrain.data.chat_template import render_prompt
from posttrain.data.tables import PAIRS, SEARCHED
from posttrain.evaluation.likelihood_shards import Work
from posttrain.job import Job
from posttrain.models import context_length
from posttrain.rewards.combine import of_functions
from posttrain.rewards.judge_cache import judge_metrics
from posttrain.rewards.scoring import load_scorers
from posttrain.rollouts import steered
from posttrain.search.beside import Row, as_scored, better, logits, unchecked, unsolved, write
from posttrain.search.continuing import Asked, Setting, slow
from posttrain.search.searching import Shard, search
from posttrain.search.step_scorer import ByDPO, ByModel, StepScorer
from posttrain.seeds import derive_seed


def run(job: Job) -> dict[str, Any]:
    """Inputs: samples (scored), policy (what sampled them); optional: reward_model, and what scores steps: step_reward,
    or step_policy and step_reference (a DPO policy and its reference). Config: search, rewards, step_ends, engine (use,
    dtype, shard_tokens); system and hint of the samples, if any; with step_policy beta and temperature, as in DPO's
    loss.
    Writes scored.parquet: the samples, with a row tagged SEARCHED for each answer that was found; and pairs.parquet,
    each of those over a wrong answer that begins like it.

    Returns how many `prompts` are of each kind, and what the search sampled and found.
    """
    section, engine, samples = job.section("search", Search), job.config["engine"], job.inputs["samples"]
    scorers, weights = load_scorers(job)
    asked, prompts = _asked(job, section, of_functions(weights))
    count = job.counter(len(asked), "prompts")
    work = Work(job.inputs["policy"], job.scratch, job.workers, engine, engine["shard_tokens"], count, job.part)
    parts = work.parts([len(one.ids) + section.budget for one in asked]) if asked else []
    setting = Setting.of(job, section, scorers, of_functions(weights))
    shards = [Shard(tuple(asked[part]), section, setting, _scorer(job)) for part in parts]
    rows = work.rows(search, shards, [[one.row["prompt_id"], one.ids] for one in asked])
    solved = [(asked[row["place"]].row, row) for row in rows if row["found"] is not None]
    found, pairs = _found(solved, lambda rows: as_scored(rows, scorers, weights, samples))
    total = write(samples, job.out, SEARCHED, found)
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
        "logits": logits(samples),
        **(unchecked(prompts) or slow(rows)),
        **judge_metrics(job.scratch),
    }


def _asked(job: Job, section: Search, weights: Mapping[str, float]) -> tuple[list[Asked], dict[str, int]]:
    """The prompts to search for, in the order of a draw by the seed; and how many there are of each kind: `asked`,
    `right` (a sample is), `unchecked` (no function scores a sample), `too_long`, and `left_out` beyond
    `search.prompts`. `weights`: of the functions."""
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["policy"])
    room = context_length(job.inputs["policy"]) - section.max_new_tokens
    without, counts = unsolved(job.inputs["samples"], weights, ["prompt", "columns"])
    steering = job.config.get("system"), job.config.get("hint")
    rendered = [(answers[0], tuple(render_prompt(tokenizer, steered(answers[0], *steering)))) for answers in without]
    fitting = [(row, ids) for row, ids in rendered if len(ids) <= room]
    fitting.sort(key=lambda one: derive_seed(job.seed, "prompts", one[0]["prompt_id"]))
    asked = [
        Asked(place, {name: row[name] for name in ("prompt_id", "prompt", "columns")}, ids)
        for place, (row, ids) in enumerate(fitting[: section.prompts])
    ]
    others = {"too_long": len(rendered) - len(fitting), "left_out": len(fitting) - len(asked)}
    return asked, {"asked": len(asked), **counts, **others}


def _found(
    solved: Sequence[tuple[Row, Row]], scored: Callable[[Sequence[Row]], list[Row]]
) -> tuple[dict[str, Row], list[dict[str, Any]]]:
    """The answer that was found to each prompt, by its id, as `write` takes it; and the rows of PAIRS. `solved`:
    prompts, each with its row of FOUND; `scored`: gives answers their rewards and score."""
    answers = [
        {**prompt, "completion": [{"role": "assistant", "content": row[text]}], "tokens": row[tokens], "of": tokens}
        for prompt, row in solved
        for tokens, text in (("found", "text"), ("wrong", "wrong_text"))
        if row[tokens] is not None
    ]
    by_kind = {(row["prompt_id"], row["of"]): row for row in scored(answers)}
    found, pairs = dict[str, Row](), list[dict[str, Any]]()
    for prompt, _ in solved:
        chosen, rejected = (by_kind.get((prompt["prompt_id"], of)) for of in ("found", "wrong"))
        assert chosen
        found[prompt["prompt_id"]] = chosen
        pairs += better(chosen, rejected, "search") if rejected else []
    return found, pairs


def _scorer(job: Job) -> StepScorer | None:
    dtype = job.config["engine"]["dtype"]
    if "step_reward" in job.inputs:
        return ByModel(str(job.inputs["step_reward"]), dtype)
    if "step_policy" not in job.inputs:
        return None
    policy, reference = (str(job.inputs[name]) for name in ("step_policy", "step_reference"))
    return ByDPO(policy, reference, dtype, job.config["beta"], job.config["temperature"])
