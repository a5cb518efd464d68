"""Statistics and annotations of a prompt as columns of its samples: pass rate, topic, tags, difficulty. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from posttrain.rewards.combine import RIGHT

PASS_RATE = "pass_rate"
COLUMNS = pa.schema(
    [
        (PASS_RATE, pa.float64()),
        ("topic", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("intentions", pa.int32()),
        ("difficulty", pa.int32()),
    ]
)


def schema(samples: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """The samples' schema with these columns appended."""
    for name in names:
        samples = samples.append(COLUMNS.field(name))
    return samples


def annotated(samples: pa.Table, names: Sequence[str], known: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """Samples (whole prompts, with `score`) with these columns appended. `known`: annotations by prompt id."""
    ids = samples["prompt_id"].to_pylist()
    rates = pass_rates(ids, samples["score"].to_pylist()) if PASS_RATE in names else {}
    for name in names:
        values = [rates[one] if name == PASS_RATE else known.get(one, {}).get(name) for one in ids]
        samples = samples.append_column(COLUMNS.field(name), pa.array(values, COLUMNS.field(name).type))
    return samples


def pass_rates(prompts: Sequence[str], scores: Sequence[float | None]) -> dict[str, float | None]:
    """The pass rate of each prompt: the share of right samples among those with a score; None if none has one."""
    hits: dict[str, list[bool]] = {prompt: [] for prompt in prompts}
    for prompt, score in zip(prompts, scores, strict=True):
        if score is not None:
            hits[prompt].append(score >= RIGHT)
    return {prompt: sum(some) / len(some) if some else None for prompt, some in hits.items()}


def level(rate: float | None) -> str | None:
    """A pass rate as a level, by thirds: hard (below 1/3), medium, easy (2/3 or more)."""
    return None if rate is None else "hard" if rate < 1 / 3 else "medium" if rate < 2 / 3 else "easy"
