"""How much of each benchmark was in what has been learned from so far, and what that may have added (5.1.4).

Reported only. Each round looks through its own rows, and goes on from what earlier rounds had seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from posttrain.data.messages import text_of
from posttrain.evaluation.contamination import Questions, gain
from posttrain.job import Job
from posttrain.stages.benchmark import QUESTIONS

N = 8  # words in an n-gram, as in the paper
# The tables that a round learns from, by role, and their columns with text.
LEARNED = {
    "kept": ("kept.parquet", ("prompt", "completion")),
    "samples": ("scored.parquet", ("prompt", "completion")),
    "online": ("rollouts.parquet", ("prompt", "completion")),
    "preferences": ("pairs.parquet", ("prompt", "chosen", "rejected", "edited")),
    "search": ("pairs.parquet", ("prompt", "chosen", "rejected", "edited")),
    "correction": ("pairs.parquet", ("prompt", "chosen", "rejected", "edited")),
    "pairs": ("pairs.parquet", ("prompt", "chosen", "rejected", "edited")),
}
_BATCH = 1024


def run(job: Job) -> dict[str, Any]:
    """Inputs: benchmark_NAME (each with questions and scores), those of LEARNED that are there, earlier (optional: this
    stage in the round before). Writes NAME.parquet, the share of each question that was seen, and NAME.npy, what was
    seen, for the next round. Returns {"rows": looked at, "tasks": by task, see `gain`, and the mean `share`}."""
    tables = {
        role.removeprefix("benchmark_"): pq.read_table(folder / QUESTIONS)
        for role, folder in job.inputs.items()
        if role.startswith("benchmark_")
    }
    made = {name: Questions(table["text"].to_pylist(), N) for name, table in tables.items()}
    for name, questions in made.items():
        before = job.inputs["earlier"] / f"{name}.npy" if "earlier" in job.inputs else None
        if before and before.is_file():
            questions.seen |= np.load(before)
    rows = 0
    for texts in _learned(job):
        rows += len(texts)
        for questions in made.values():
            questions.look(texts)
        job.progress(rows, rows, "rows")
    found: dict[str, Any] = {}
    for name, table in tables.items():
        np.save(job.out / f"{name}.npy", made[name].seen)
        shares = made[name].shares()
        pq.write_table(table.append_column("share", [shares]), job.out / f"{name}.parquet")
        tasks, scores = np.asarray(table["task"].to_pylist()), np.asarray(table["score"].to_pylist(), np.float64)
        for task in dict.fromkeys(tasks.tolist()):
            of_task = tasks == task
            known = of_task & np.isfinite(scores)
            found[task] = {"share": float(shares[of_task].mean()), **gain(shares[known], scores[known], job.seed)}
    return {"rows": rows, "tasks": found}


def _learned(job: Job) -> Iterator[Sequence[str]]:
    """The texts of the round's rows, in batches."""
    for role, (file, columns) in LEARNED.items():
        if role not in job.inputs:
            continue
        path: Path = job.inputs[role] / file
        there = [name for name in columns if name in pq.read_schema(path).names]
        for batch in pq.ParquetFile(path).iter_batches(_BATCH, columns=there):
            yield [text_of([part for name in there for part in row[name] or ()]) for row in batch.to_pylist()]
