"""Labels the steps of samples for the step reward model, by what comes of them (Wang et al. 2024, arXiv 2312.08935; the
first wrong step by binary search: Luo et al. 2024, arXiv 2406.06592)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from posttrain.config.step_reward import StepLabels
from posttrain.data.chat_template import render_prompt
from posttrain.data.pairs import split
from posttrain.data.tables import STEP_LABELS, by_prompt
from posttrain.evaluation.likelihood_shards import Work
from posttrain.job import Job
from posttrain.models import context_length
from posttrain.rewards.combine import RIGHT, combine, of_functions
from posttrain.rewards.judge_cache import judge_metrics
from posttrain.rewards.scoring import load_scorers
from posttrain.rollouts import steered
from posttrain.search.continuing import Asked, Setting, slow
from posttrain.search.labelling import Answer, Shard, label
from posttrain.seeds import derive_seed

_NONE = "no step is labelled: no prompt has right samples and wrong ones that came to their end"


def run(job: Job) -> dict[str, Any]:
    """Inputs: samples (scored), policy (what sampled them). Config: labels, rewards, step_ends, engine (use, dtype,
    shard_tokens); system and hint of the samples, if any. Writes step_labels.parquet: see STEP_LABELS.

    Returns how many `answers` and steps were labelled, and the `tokens` sampled for it.
    """
    section, engine = job.section("labels", StepLabels), job.config["engine"]
    scorers, weights = load_scorers(job)
    answers, rows, prompts = _answers(job, section, of_functions(weights))
    count = job.counter(len(answers), "answers")
    work = Work(job.inputs["policy"], job.scratch, job.workers, engine, engine["shard_tokens"], count, job.part)
    sizes = [len(one.asked.ids) + section.k * section.max_new_tokens for one in answers]
    setting = Setting.of(job, section, scorers, of_functions(weights))
    shards = [Shard(tuple(answers[part]), section.k, setting) for part in (work.parts(sizes) if sizes else [])]
    found = work.rows(label, shards, [[one.asked.ids, one.tokens] for one in answers])
    made = [
        {**row, **{name: one[name] for name in ("labels", "sizes")}}
        for row, one in zip(rows, found, strict=True)
        if one["sizes"]
    ]
    pq.write_table(pa.Table.from_pylist(made, schema=STEP_LABELS), job.out / "step_labels.parquet", compression="zstd")
    verdicts = [verdict for row in made for verdict in row["labels"]]
    return {
        "prompts": prompts,
        "answers": len(made),
        "without_steps": len(rows) - len(made),
        "steps": {"right": verdicts.count(1), "wrong": verdicts.count(0), "after": verdicts.count(None)},
        "tokens": sum(one["sampled"] for one in found),
        **({"fallback": [_NONE]} if not rows else slow(found)),
        **judge_metrics(job.scratch),
    }


def _answers(
    job: Job, section: StepLabels, weights: Mapping[str, float]
) -> tuple[list[Answer], list[dict[str, Any]], dict[str, int]]:
    """The answers to label, the rows that they will be, and how many prompts were `looked_at`, are `used`, and are
    `too_long`. Answers that leave no room to go on from are none. `weights`: of the functions."""
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["policy"])
    room = context_length(job.inputs["policy"]) - section.max_new_tokens
    steering = job.config.get("system"), job.config.get("hint")
    columns = ["prompt_id", "sample_index", "prompt", "completion", "tokens", "finish", "rewards", "columns"]
    looked_at, usable, too_long = 0, [], 0
    for group in by_prompt(job.inputs["samples"] / "scored.parquet", columns):
        looked_at += 1
        kinds: dict[bool, dict[tuple[int, ...], dict[str, Any]]] = {True: {}, False: {}}
        for row in group:
            verdict = combine(row["rewards"], weights)
            if verdict is not None and row["finish"] == "stop" and 0 < len(row["tokens"]) < section.max_new_tokens:
                kinds[verdict >= RIGHT].setdefault(tuple(row["tokens"]), row)
        ids = tuple(render_prompt(tokenizer, steered(group[0], *steering)))
        if all(kinds.values()) and len(ids) <= room:
            usable.append((ids, {right: [*some.values()][: section.answers] for right, some in kinds.items()}))
        elif all(kinds.values()):
            too_long += 1
    usable.sort(key=lambda one: derive_seed(job.seed, "prompts", one[1][True][0]["prompt_id"]))
    used = usable[: section.prompts]
    chosen = [(ids, right, row) for ids, kinds in used for right, rows in kinds.items() for row in rows]
    answers = [
        Answer(Asked(place, _named(row, "prompt_id", "prompt", "columns"), ids), tuple(row["tokens"]), right)
        for place, (ids, right, row) in enumerate(chosen)
    ]
    rows = [
        _named(row, "prompt_id", "sample_index", "prompt", "completion", "tokens")
        | {"right": right, "split": split(row["prompt_id"], section.heldout)}
        for _, right, row in chosen
    ]
    return answers, rows, {"looked_at": looked_at, "used": len(used), "too_long": too_long}


def _named(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names}
