"""The filters' stage, on tables as the loop writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.job import Job
from posttrain.stages import filters, prompts


def said(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def scored(folder: Path, rows: list[tuple[str, str]]) -> Path:
    """A folder of the scores' stage: prompts and answers."""
    folder.mkdir(parents=True)
    made = [
        {"prompt_id": prompt, "prompt": said("user", prompt), "completion": said("assistant", answer), "score": 1.0}
        for prompt, answer in rows
    ]
    pq.write_table(pa.Table.from_pylist(made), folder / "scored.parquet")
    return folder


def evaluated(folder: Path, dev: list[str], heldout: list[str]) -> Path:
    folder.mkdir(parents=True)
    for name, texts in (("dev", dev), ("heldout", heldout)):
        rows = [{"id": text, "prompt": said("user", text), "columns": "{}", "line": 1} for text in texts]
        pq.write_table(pa.Table.from_pylist(rows, prompts.SCHEMA), folder / f"{name}.parquet")
    return folder


def run(folder: Path, chain: list[dict[str, Any]], **inputs: Path) -> tuple[list[str], dict[str, Any]]:
    """The answers kept, and the metrics."""
    folder.mkdir(parents=True)
    metrics = filters.run(Job({"filters": chain}, inputs, folder, folder / "scratch", 0))
    return [row["completion"][0]["content"] for row in pq.read_table(folder / "kept.parquet").to_pylist()], metrics


def test_a_round_drops_what_earlier_rounds_kept_where_a_filter_looks_at_them(tmp_path: Path) -> None:
    sets = evaluated(tmp_path / "prompts", ["dev"], ["heldout"])
    both = [{"use": "exact-duplicates", "across_rounds": True}, {"use": "near-duplicates", "across_rounds": True}]
    one = scored(tmp_path / "one", [("p", "so the answer is twelve apples"), ("q", "no idea at all, sorry")])
    kept, _ = run(tmp_path / "round-1", both, scored=one, prompts=sets)
    assert len(kept) == 2
    again = [("p", "so the answer  is twelve apples"), ("p", "So, the answer is twelve apples!"), ("p", "it is nine")]
    two = scored(tmp_path / "two", again)
    kept, metrics = run(tmp_path / "round-2", both, scored=two, prompts=sets, earlier_001=tmp_path / "round-1")
    assert kept == ["it is nine"]
    assert metrics["dropped"] == {
        "exact-duplicates: duplicate of an earlier round": 1,
        "near-duplicates: near duplicate of an earlier round": 1,
    }


def test_prompts_of_every_evaluation_set_reach_the_overlap_filter(tmp_path: Path) -> None:
    sets = evaluated(tmp_path / "prompts", ["of dev"], ["held out"])
    further = [{"id": "f", "prompt": said("user", "further set"), "columns": "{}", "line": 1}]
    pq.write_table(pa.Table.from_pylist(further, prompts.SCHEMA), sets / "against.parquet")
    rows = [(prompt, prompt) for prompt in ("Of dev?", "held  out", "further set!", "of nobody")]
    kept, _ = run(tmp_path / "out", [{"use": "overlap"}], scored=scored(tmp_path / "s", rows), prompts=sets)
    assert kept == ["of nobody"]
