"""Annotates the round's prompts: topics, a judge's intention tags and difficulty (Llama 3, section 4.2.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.config import Annotate, Rated
from posttrain.data.tables import column
from posttrain.evaluation.topics import topics
from posttrain.filters.rows import message_text
from posttrain.job import Job
from posttrain.rewards import rubric as rubrics
from posttrain.rewards.judge import Judge, load
from posttrain.rewards.judge_cache import judge_metrics
from posttrain.rewards.judge_prompt import spoken
from posttrain.rewards.prompt_stats import COLUMNS, PASS_RATE

SCHEMA = pa.schema([pa.field("prompt_id", pa.string()), *(one for one in COLUMNS if one.name != PASS_RATE)])


def run(job: Job) -> dict[str, Any]:
    """Inputs: prompts, answers. Config: annotate. Writes annotations.parquet: one row per sampled prompt, null where a
    judge was not asked or gave no answer of the required form.

    Topics are clusters of all training prompts, so that they are the same in every round.

    Raises:
        DataError: the prompts hold too few distinct texts for that many topics.
        EngineError: a judge does not work.
    """
    section = job.section("annotate", Annotate)
    prompts = pq.read_table(job.inputs["prompts"] / "train.parquet", columns=["id", "prompt"]).to_pylist()
    sampled = set(column(job.inputs["answers"] / "answers.parquet", "prompt_id"))
    found: dict[str, dict[str, Any]] = {row["id"]: {"prompt_id": row["id"]} for row in prompts if row["id"] in sampled}
    texts = {row["id"]: spoken(row["prompt"]) for row in prompts if row["id"] in sampled}
    if section.topics:
        named = topics([message_text(row["prompt"]) for row in prompts], section.topics, job.seed)
        for row, topic in zip(prompts, named, strict=True):
            if row["id"] in found:
                found[row["id"]]["topic"] = topic
    if section.tags:
        judge = _judge(job, section.tags)
        for name, tags in zip(texts, judge.tags([(text, None) for text in texts.values()]), strict=True):
            found[name] |= {"tags": tags, "intentions": None if tags is None else len(tags)}
    if section.difficulty:
        judge = _judge(job, section.difficulty)
        for name, points in zip(texts, judge.scores([(text, None) for text in texts.values()]), strict=True):
            found[name]["difficulty"] = points
    table = pa.Table.from_pylist(list(found.values()), schema=SCHEMA)
    pq.write_table(table, job.out / "annotations.parquet", compression="zstd")
    return {"prompts": len(found), **_counted(found), **judge_metrics(job.scratch)}


def _judge(job: Job, rated: Rated) -> Judge:
    judge = load(rubrics.load(rated.rubric), rated.judge, job.scratch)
    judge.probe()
    return judge


def _counted(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Counts of prompts by column and value."""
    counts = {
        name: Counter(str(row[name]) for row in found.values() if name in row)
        for name in ("topic", "intentions", "difficulty")
    }
    return {name: dict(sorted(values.items())) for name, values in counts.items() if values}
