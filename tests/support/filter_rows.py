"""Rows as filters are given them."""

from __future__ import annotations

import pyarrow as pa

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

SCORED = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("prompt", MESSAGES),
        ("completion", MESSAGES),
        ("tokens", pa.list_(pa.int32())),
        ("n_tokens", pa.int32()),
        ("finish", pa.string()),
        ("score", pa.float64()),
    ]
)


def row(answer: str, prompt: str = "How many?", **columns) -> dict:
    return {
        "prompt_id": prompt,
        "sample_index": 0,
        "prompt": [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": answer}],
        "tokens": [1, 2],
        "n_tokens": len(answer.split()),
        "finish": "stop",
        "score": 0.5,
    } | columns


def batches(rows: list[dict], size: int = 3) -> list[pa.RecordBatch]:
    return pa.Table.from_pylist(rows, SCORED).to_batches(max_chunksize=size)
