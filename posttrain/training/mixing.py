"""Which rows SFT learns from, how often, and in what order. Pure, but for torch's permutations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from posttrain.config import Anneal, Source
from posttrain.seeds import derive_seed

Row = Mapping[str, Any]


def mixed(sources: Mapping[str, Sequence[Row]], mix: Mapping[str, Source], seed: int) -> list[Row]:
    """The rows of an epoch: of each source its share, by a draw that depends on the row alone, repeated.

    A row is (prompt_id, sample_index); the same row in a larger table is drawn alike.
    """
    rows: list[Row] = []
    for name, given in sources.items():
        source = mix[name]
        chosen = [row for row in given if drawn(seed, name, row) < source.share]
        rows += chosen * source.repeats
    return rows


def guaranteed(rows: Sequence[Row], share: float, others: int, seed: int) -> list[Row]:
    """So many rows that they are `share` of an epoch beside `others`, by another draw in each round.

    Where there are fewer, each comes again before any comes once more.
    """
    count = math.ceil(share / (1 - share) * others)
    order = sorted(rows, key=lambda row: (drawn(seed, "real", row), row["prompt_id"]))
    return [order[at % len(order)] for at in range(count)] if order else []


def drawn(seed: int, source: str, row: Row) -> float:
    """Uniform in [0, 1)."""
    return derive_seed(seed, "mix", source, row["prompt_id"], row["sample_index"]) / 2**31


def passes(trl: Mapping[str, Any], rows: int, batch: int) -> float:
    """How often training goes over the rows: `max_steps`, where it is set, goes before `num_train_epochs`."""
    steps = trl.get("max_steps", -1)
    return steps * batch / rows if steps > 0 else trl["num_train_epochs"]


def annealed(
    scores: Sequence[float], lengths: Sequence[int], anneal: Anneal, epochs: float, batch: int, seed: int
) -> list[int]:
    """Indices of rows in the order in which they are learned from, `epochs` × rows of them.

    First all rows, epoch after epoch; in the last `anneal.steps` of the steps the best `anneal.best` of them by score.
    Within each pass rows of like length stand together, as transformers' `group_by_length` has it.
    """
    total = round(len(scores) * epochs)
    at_the_end = min(total, round(total * anneal.steps / batch) * batch)
    count = max(1, round(len(scores) * anneal.best))
    best = sorted(range(len(scores)), key=lambda at: (-scores[at], at))[:count]
    generator = torch.Generator().manual_seed(seed)
    first = _passes(range(len(scores)), lengths, total - at_the_end, batch, generator)
    return first + _passes(best, lengths, at_the_end, batch, generator)


def _passes(
    rows: Sequence[int], lengths: Sequence[int], count: int, batch: int, generator: torch.Generator
) -> list[int]:
    from transformers.trainer_pt_utils import get_length_grouped_indices

    order: list[int] = []
    while len(order) < count:
        grouped = get_length_grouped_indices([lengths[at] for at in rows], batch, generator=generator)
        order += [rows[at] for at in grouped]
    return order[:count]
