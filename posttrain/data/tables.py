"""Schemas of the tables that stages exchange, and reading them prompt by prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
ANSWERS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("tag", pa.string()),  # which policy or which setting sampled it, where a table holds several
        ("prompt", MESSAGES),
        ("completion", MESSAGES),
        ("tokens", pa.list_(pa.int32())),
        ("n_tokens", pa.int32()),
        ("finish", pa.string()),
        ("logprob", pa.float64()),
        ("columns", pa.string()),
    ]
)
# Answers beside what the rewards gave them, as JSON {name: value or null}.
SCORED_ANSWERS = ANSWERS.append(pa.field("rewards", pa.string()))
# Of an answer the score of each of its steps: a table by itself, and a column of scored samples.
STEP_SCORES = pa.schema(
    [("prompt_id", pa.string()), ("sample_index", pa.int32()), ("step_scores", pa.list_(pa.float64()))]
)
# Samples whose steps are labelled: 1 right, 0 the first wrong one, null behind it; and how many tokens each step has.
STEP_LABELS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("prompt", MESSAGES),
        ("completion", MESSAGES),
        ("tokens", pa.list_(pa.int32())),
        ("sizes", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int8())),
        ("right", pa.bool_()),
        ("split", pa.string()),
    ]
)
PAIRS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", MESSAGES),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("edited", MESSAGES),  # a better version of chosen, where somebody wrote one: it ranks above both
        ("margin", pa.float64()),
        ("level", pa.string()),
        ("source", pa.string()),
        # "train"; "heldout": never trained on, measures reward models; "watch": see recipe.watch
        ("split", pa.string()),
        ("columns", pa.string()),
    ]
)
# Tags of an evaluation's answers.
GREEDY, SAMPLED = "greedy", "sampled"
# The tags of answers among the samples that a search found, or a second try: their names in `sft.mix`, too.
SEARCHED, CORRECTED = "searched", "corrected"


def column(table: Path, name: str) -> list[Any]:
    """The values of one column, without reading the others."""
    return pq.read_table(table, columns=[name])[name].to_pylist()


def by_prompt(table: Path, columns: Sequence[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    """The rows of each prompt of a table of scored answers, prompt by prompt, with `rewards` and nothing else parsed.

    Streams: one row group is in memory at a time.
    """
    file = pq.ParquetFile(table)
    rows = (row for batch in file.iter_batches(4096, columns=columns) for row in batch.to_pylist())
    for _, group in groupby(rows, key=lambda row: (row["prompt_id"], row.get("tag"))):
        yield [{**row, "rewards": json.loads(row["rewards"])} for row in group]
