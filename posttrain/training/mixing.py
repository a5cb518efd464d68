"""The mix of SFT rows: which, how often, and in what order. Pure, but for torch's permutations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from posttrain.config import Anneal, Source
from posttrain.seeds import derive_seed

Row = Mapping[str, Any]


def mixed(sources: Mapping[str, Sequence[Row]], mix: Mapping[str, Source], seed: int) -> list[Row]:
    """The rows of an epoch: of each source its share, sampled by a draw that depends on the row alone, then repeated.

    A row is identified by (prompt_id, sample_index); its draw is the same in a larger table.
    """
    rows: list[Row] = []
    for name, given in sources.items():
        source = mix[name]
        chosen = [row for row in given if drawn(seed, name, row) < source.share]
        rows += chosen * source.repeats
    return rows


def guaranteed(rows: Sequence[Row], share: float, others: int, seed: int) -> list[Row]:
    """As many rows as make them `share` of an epoch together with `others`, drawn anew in each round.

    If there are too few, all are repeated equally often, to within one.
    """
    count = math.ceil(share / (1 - share) * others)
    order = sorted(rows, key=lambda row: (drawn(seed, "real", row), row["prompt_id"]))
    return [order[at % len(order)] for at in range(count)] if order else []


def drawn(seed: int, source: str, row: Row) -> float:
    """Uniform in [0, 1)."""
    return derive_seed(seed, "mix", source, row["prompt_id"], row["sample_index"]) / 2**31


def passes(trl: Mapping[str, Any], rows: int, batch: int) -> float:
    """The number of epochs: from `max_steps` if it is set, else `num_train_epochs`."""
    steps = trl.get("max_steps", -1)
    return steps * batch / rows if steps > 0 else trl["num_train_epochs"]


def annealed(
    scores: Sequence[float], lengths: Sequence[int], anneal: Anneal, epochs: float, batch: int, seed: int
) -> list[int]:
    """Row indices in training order, `epochs` × rows of them.

    First all rows, epoch after epoch; in the last `anneal.steps` (a share) of the steps the best `anneal.best` of them
    by score. Within each pass rows of similar length are grouped, as by transformers' `group_by_length`.
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
