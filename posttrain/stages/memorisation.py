"""How much a policy has by heart of the rows that it was trained on, against rows that it was not. Reported only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow.parquet as pq
from transformers import AutoTokenizer

from posttrain.config.memorisation import Memorisation
from posttrain.data.chat_template import render_completion, render_prompt
from posttrain.data.tables import SAMPLED
from posttrain.engines.protocol import Ids
from posttrain.evaluation.likelihood_shards import Work, log_likelihoods
from posttrain.evaluation.memorisation import apart, figures, window
from posttrain.job import Job
from posttrain.seeds import derive_seed


def run(job: Job) -> dict[str, Any]:
    """Inputs: policy, kept (rows of its SFT), heldout (answers to prompts that nothing is trained on). Config:
    memorisation, engine (use, dtype, shard_tokens). Writes nothing.

    Returns the figures of `trained` and `others`, see `evaluation.memorisation.figures`, and `verbatim` and
    `probability`, the differences between them. The held-out answers are those of the policy that sampled the rows, so
    that both are written by the same model.
    """
    section, engine = job.section("memorisation", Memorisation), job.config["engine"]
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["policy"])
    columns = ["prompt_id", "sample_index", "prompt", "completion"]
    kept = pq.read_table(job.inputs["kept"] / "kept.parquet", columns=columns).to_pylist()
    heldout = pq.read_table(job.inputs["heldout"] / "heldout.parquet", columns=[*columns, "tag"]).to_pylist()
    asked = {
        "trained": _pairs(tokenizer, _drawn(kept, section.rows), section.n),
        "others": _pairs(tokenizer, _drawn([row for row in heldout if row["tag"] == SAMPLED], section.rows), section.n),
    }
    total = sum(len(pairs) for pairs, _ in asked.values())
    work = Work(
        job.inputs["policy"], job.scratch, job.workers, engine, engine["shard_tokens"], job.counter(total, "rows")
    )
    found = {
        name: figures(log_likelihoods(pairs, work), section.n, too_short) for name, (pairs, too_short) in asked.items()
    }
    between = {name: apart(found["trained"][name], found["others"][name]) for name in ("verbatim", "probability")}
    return {**found, **between}


def _drawn(rows: Iterable[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """So many rows, the same ones whatever their order."""
    return sorted(rows, key=lambda row: derive_seed("memorisation", "rows", _named(row)))[:count]


def _named(row: Mapping[str, Any]) -> str:
    return f"{row['prompt_id']}/{row['sample_index']}"


def _pairs(tokenizer: Any, rows: Iterable[Mapping[str, Any]], n: int) -> tuple[list[tuple[Ids, Ids]], int]:
    """Of each row all before its n-gram, the prompt included, and the n-gram; and how many answers are shorter."""
    pairs, too_short = list[tuple[Ids, Ids]](), 0
    for row in rows:
        answer = render_completion(tokenizer, row["prompt"], row["completion"][-1]["content"])
        start = window(_named(row), len(answer), n)
        if start is None:
            too_short += 1
            continue
        before = (*render_prompt(tokenizer, row["prompt"]), *answer[:start])
        pairs.append((before, tuple(answer[start : start + n])))
    return pairs, too_short
