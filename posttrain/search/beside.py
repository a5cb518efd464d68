"""Answers that are looked for where no sample is right: to which prompts, and how they come to stand beside the
samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.data.pairs import pair_row, text
from posttrain.data.tables import by_prompt
from posttrain.rewards.combine import RIGHT, combine
from posttrain.rewards.scoring import Scorers, row_values
from posttrain.storage import store
from posttrain.storage.files import read_json

TABLE = "scored.parquet"
_ROWS = 4096  # written at once
_OF_ANSWER = ("prompt", "completion", "tokens", "rewards", "score")

Row = Mapping[str, Any]


def unchecked(prompts: Mapping[str, int]) -> dict[str, list[str]]:
    """For a stage's metrics: a note where no prompt at all has a verdict. prompts: how many there are of each kind."""
    if not prompts["unchecked"] or prompts["unchecked"] < sum(prompts.values()):
        return {}
    return {"fallback": ["nothing is looked for: no reward function says which samples are right"]}


def unsolved(
    samples: Path, weights: Mapping[str, float], columns: Sequence[str]
) -> tuple[list[list[Row]], Counter[str]]:
    """The samples of each prompt of which none is right; and how many prompts have one (`right`) or have no verdict
    (`unchecked`). `weights`: of the functions that say what is right; `columns`: those that are read."""
    found, counts = list[list[Row]](), Counter[str](right=0, unchecked=0)
    for answers in by_prompt(samples / TABLE, [*columns, "prompt_id", "rewards"]):
        verdicts = [verdict for row in answers if (verdict := combine(row["rewards"], weights)) is not None]
        if not verdicts:
            counts["unchecked"] += 1
        elif max(verdicts) >= RIGHT:
            counts["right"] += 1
        else:
            found.append(list(answers))
    return found, counts


def as_scored(rows: Sequence[Row], scorers: Scorers, weights: Mapping[str, float], samples: Path) -> list[Row]:
    """Answers with `rewards` and `score`, as the stage `scores` gives them: a reward model's logits are scaled by the
    mean and deviation that they had among the samples. Rows of one prompt stand together."""
    scale = logits(samples)
    values = row_values(rows, scorers) if rows else []
    return [
        {**row, "rewards": json.dumps(one), "score": combine(one, weights, scale["mean"], scale["deviation"])}
        for row, one in zip(rows, values, strict=True)
    ]


def logits(samples: Path) -> dict[str, float]:
    """Mean and deviation of the reward model's logits of these samples, as their stage reported them."""
    return read_json(samples / store.MANIFEST)["metrics"]["logits"]


def write(samples: Path, target: Path, tag: str, found: Mapping[str, Row]) -> int:
    """Writes the samples with an answer below those of its prompt, where one was `found`, by the prompt's id: a row of
    `as_scored`. Returns the number of rows."""
    source = pq.ParquetFile(samples / TABLE)
    total, schema = 0, source.schema_arrow
    rows = (row for batch in source.iter_batches(_ROWS) for row in batch.to_pylist())
    with pq.ParquetWriter(target / TABLE, schema, compression="zstd") as writer:
        for some in _batches(rows, tag, found):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
            total += len(some)
    return total


def better(chosen: Row, rejected: Row, source: str) -> list[dict[str, Any]]:
    """The row of PAIRS of a right answer and a wrong one to a prompt; none where the whole score, a reward model's part
    included, does not say so too, or both have the same text."""
    scores, texts = (chosen["score"], rejected["score"]), [text(one).strip() for one in (chosen, rejected)]
    if None in scores or scores[0] <= scores[1] or texts[0] == texts[1]:
        return []
    return [pair_row(chosen, rejected, source)]


def _batches(rows: Iterator[dict[str, Any]], tag: str, found: Mapping[str, Row]) -> Iterator[list[Row]]:
    made: list[Row] = []
    for prompt_id, group in groupby(rows, key=lambda row: row["prompt_id"]):
        answers = list(group)
        made += answers
        if prompt_id in found:
            new = found[prompt_id]
            fresh = {
                "sample_index": 1 + max(row["sample_index"] for row in answers),
                "tag": tag,
                "finish": "stop",
                "logprob": None,
                "n_tokens": len(new["tokens"]),
                "step_scores": None,  # those of the samples are another model's
            }
            made.append({**answers[0], **fresh, **{name: new[name] for name in _OF_ANSWER}})
        if len(made) >= _ROWS:
            yield made
            made = []
    yield made
