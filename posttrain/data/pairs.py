"""Makes pairs of a chosen and a rejected answer from the scored answers to a prompt. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

from posttrain.seeds import derive_seed

Level = Literal["significantly_better", "better", "slightly_better", "marginally_better"]
Split = Literal["train", "heldout", "watch"]
GIVEN = "given"  # the source of pairs that no policy of the run made
Row = Mapping[str, Any]  # a row of the samples table with a `score`


def text(row: Row) -> str:
    return row["completion"][-1]["content"]


def level(margin: float, bounds: Mapping[str, float]) -> Level:
    """The four-level preference of Llama 3 (section 4.2.1) from a reward margin > 0 and the lower bounds by level."""
    for name in ("significantly_better", "better", "slightly_better"):
        if margin >= bounds[name]:
            return name
    return "marginally_better"


def split(prompt_id: str, heldout: float, watch: float = 0.0) -> Split:
    """The split of this prompt's pairs, the same in every round, so that no prompt is in two splits.

    `heldout` and `watch` are shares of all prompts; the rest is `train`.
    """
    draw = derive_seed("heldout", prompt_id) / 2**31
    if draw < heldout:
        return "heldout"
    return "watch" if draw < heldout + watch else "train"


def best_and_worst(rows: Sequence[Row], margin: float) -> tuple[Row, Row] | None:
    """The best and the worst answer by `score`, when they differ by at least `margin` > 0 and in their text.

    Rows without a score are no candidates. An answer cut off at its limit is the best only where no other ended: a
    policy that learns from it would learn to ramble. Ties go to the earlier row.
    """
    return _best_against_worst(rows, rows, margin)


def _best_against_worst(better: Sequence[Row], worse: Sequence[Row], margin: float = 0.0) -> tuple[Row, Row] | None:
    ups = [row for row in better if row["score"] is not None]
    downs = [row for row in worse if row["score"] is not None]
    if any(row["finish"] != "length" for row in [*ups, *downs]):
        ups = [row for row in ups if row["finish"] != "length"]
    if not ups or not downs:
        return None
    chosen = max(ups, key=lambda row: row["score"])
    rejected = min(downs, key=lambda row: row["score"])
    gap = chosen["score"] - rejected["score"]
    if not gap > 0 or gap < margin or text(chosen).strip() == text(rejected).strip():
        return None
    return chosen, rejected


def best_worst_pairs(groups: Iterable[list[dict[str, Any]]], margin: float, source: str) -> Iterator[dict[str, Any]]:
    """A pair for each prompt (a group of its samples with their `score`) whose best and worst differ enough."""
    for rows in groups:
        pair = best_and_worst(rows, margin)
        if pair is not None:
            yield pair_row(*pair, source)


def pair_row(chosen: Row, rejected: Row, source: str, level: Level | None = None) -> dict[str, Any]:
    """The row of PAIRS of two scored answers to a prompt."""
    return {
        "prompt_id": chosen["prompt_id"],
        "prompt": chosen["prompt"],
        "chosen": chosen["completion"],
        "rejected": rejected["completion"],
        "edited": None,
        "margin": chosen["score"] - rejected["score"],
        "level": level,
        "source": source,
        "split": "train",
        "columns": chosen["columns"],
    }


def once(tables: Iterable[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of all tables. A given pair in several tables (its file is used in several rounds) is kept once."""
    seen: set[str] = set()
    rows = []
    for row in (row for table in tables for row in table):
        if row["source"] == GIVEN:
            identity = json.dumps([row[name] for name in ("prompt", "chosen", "rejected", "edited")])
            if identity in seen:
                continue
            seen.add(identity)
        rows.append(row)
    return rows


def ordered_pairs(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A ranking edited > chosen > rejected as its ordered pairs, `chosen` over `rejected` in each; of two, that one."""
    ranking = [row[side] for side in ("edited", "chosen", "rejected") if row.get(side)]
    return [{**row, "edited": None, "chosen": one, "rejected": other} for one, other in combinations(ranking, 2)]


def across_policies(first: Sequence[Row], second: Sequence[Row]) -> tuple[Row, Row] | None:
    """The two answers, one of each policy, that differ most in `score`: (chosen, rejected)."""
    pairs = (_best_against_worst(better, worse) for better, worse in ((first, second), (second, first)))
    return max(filter(None, pairs), key=lambda pair: pair[0]["score"] - pair[1]["score"], default=None)
