"""Monitors collapse: the diversity of the rows that the filters kept, compared to the first round's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain import filters
from posttrain.config.collapse import Collapse
from posttrain.evaluation import diversity
from posttrain.filters.near_duplicates import NearDuplicates
from posttrain.filters.rows import Rows
from posttrain.job import Job
from posttrain.seeds import derive_seed

BLEU = 200  # answers of the sample that self-BLEU looks at
RISES = ("compression_ratio", "self_bleu")  # with collapse; the distinct-n fall


def run(job: Job) -> dict[str, Any]:
    """Inputs: kept (filters artifact), first (round 1's; absent in round 1). Config: collapse. Writes nothing.

    Returns `figures` of the round, `first` of round 1 at the same number of rows, and `warnings`.
    """
    section = job.section("collapse", Collapse)
    tables = {name: path for name, path in job.inputs.items() if name in ("kept", "first")}
    count = min(section.sample, *(pq.read_metadata(path / "kept.parquet").num_rows for path in tables.values()))
    answers = {name: _sample(path, count, job.seed) for name, path in tables.items()}
    found = {name: figures(texts) for name, texts in answers.items()}
    drift = None
    if "first" in answers:
        words = ([diversity.words_of(text) for text in answers[name]] for name in ("first", "kept"))
        drift = diversity.js_divergence(*words)
    mine = {**found["kept"], "drift": drift}
    return {"figures": mine, "first": found.get("first"), "warnings": warnings(mine, found.get("first"), section)}


def figures(texts: Sequence[str]) -> dict[str, Any]:
    """The diversity figures of a sample of answers."""
    words = [diversity.words_of(text) for text in texts]
    return {
        "answers": len(texts),
        **{f"distinct_{n}": diversity.distinct(words, n) for n in (1, 2, 3)},
        "compression_ratio": diversity.compression_ratio(texts),
        "self_bleu": diversity.self_bleu(words[:BLEU]),
        "near_duplicates": _near_duplicates(texts),
        "length": sum(map(len, words)) / len(words) if words else None,
    }


def warnings(mine: Mapping[str, Any], first: Mapping[str, Any] | None, section: Collapse) -> list[str]:
    """One sentence per figure that indicates collapse or drift."""
    said = []
    if (share := mine["near_duplicates"]) > section.max_near_duplicates:
        said.append(f"{share:.0%} of the kept answers are near-duplicates of others")
    if first is None:
        return said
    for name in ("distinct_1", "distinct_2", "distinct_3", *RISES, "length"):
        now, then = mine[name], first[name]
        if now is None or not then:
            continue
        change = now / then - 1
        fell, rose = change < -section.max_change, change > section.max_change
        if (fell and name not in RISES) or (rose and (name in RISES or name == "length")):
            verb = "fell" if fell else "rose"
            said.append(f"{name.replace('_', ' ')} of the kept answers {verb} from {then:.3g} in round 1 to {now:.3g}")
    if mine["drift"] is not None and mine["drift"] > section.max_drift:
        said.append(f"the words of the kept answers moved away from round 1's, by {mine['drift']:.2f} bits")
    return said


def _near_duplicates(texts: Sequence[str]) -> float:
    """The share of answers that are near-duplicates of an earlier one."""
    batch = pa.RecordBatch.from_pydict({"prompt": [""] * len(texts), "completion": list(texts)})
    passage = filters.run([batch], [NearDuplicates(of="answer")], filters.FilterContext())
    list(passage)
    return 1 - passage.rows_kept / passage.rows_in if passage.rows_in else 0.0


def _sample(folder: Path, count: int, seed: int) -> list[str]:
    """The answers of `count` rows, drawn by the row's index alone, in the order of the draw."""
    with pq.ParquetFile(folder / "kept.parquet") as table:
        total = table.metadata.num_rows
        chosen = sorted(range(total), key=lambda at: derive_seed(seed, "diversity", at))[:count]
        place, texts, start = {at: rank for rank, at in enumerate(chosen)}, [""] * count, 0
        for batch in table.iter_batches(8192, columns=["prompt", "completion"]):
            for at, text in enumerate(Rows(batch).answers, start):
                if at in place:
                    texts[place[at]] = text
            start += batch.num_rows
    return texts
