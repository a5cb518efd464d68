"""Balances rows by topic, source or difficulty: downsamples frequent values, repeats rare ones. Pure."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.config import Balance
from posttrain.errors import DataError, did_you_mean
from posttrain.rewards.prompt_stats import PASS_RATE, level

Row = Mapping[str, Any]
NOTHING = "null"  # how a share names rows without a value


def balanced(
    rows: Sequence[Row], balance: Balance, draw: Callable[[Row], float]
) -> tuple[list[Row], dict[str, dict[str, int]]]:
    """As many rows as given, with the wanted share of each value of a column; and rows in and out by value.

    A value v with n of N rows and share t gets t·N rows: each of its rows floor(t·N / n) times, and those with the
    lowest `draw` (in [0, 1), by row) once more, but none more than `max_repeats` times; the shortfall is not filled.
    Values without a share of their own split the rest in proportion to their rows; shares of values that do not occur
    are split among those that do.

    Raises:
        DataError: no row has such a column.
    """
    values = _values(rows, balance.by)
    counts = Counter(values)
    shares = _shares(counts, balance)
    groups: dict[str, list[int]] = {value: [] for value in counts}
    for at, value in enumerate(values):
        groups[value].append(at)
    copies = [0] * len(rows)
    for value, members in groups.items():
        wanted = min(shares[value] * len(rows), balance.max_repeats * len(members))
        each = math.floor(wanted / len(members) + 1e-9)
        more = round(wanted - each * len(members))
        for rank, at in enumerate(sorted(members, key=lambda at: draw(rows[at]))):
            copies[at] = each + (rank < more)
    chosen = [row for row, count in zip(rows, copies, strict=True) for _ in range(count)]
    out = Counter(value for value, count in zip(values, copies, strict=True) for _ in range(count))
    return chosen, {value: {"in": counts[value], "out": out[value]} for value in sorted(counts)}


def _shares(counts: Mapping[str, int], balance: Balance) -> dict[str, float]:
    """The share of each value that occurs; they sum to 1."""
    if balance.shares == "equal":
        return {value: 1 / len(counts) for value in counts}
    named = {value: share for value, share in balance.shares.items() if value in counts}
    others = {value: count for value, count in counts.items() if value not in named}
    left = max(0.0, 1 - sum(balance.shares.values()))
    shares = {**named, **{value: left * count / sum(others.values()) for value, count in others.items()}}
    total = sum(shares.values())
    return {value: share / total if total else 1 / len(counts) for value, share in shares.items()}


def _values(rows: Sequence[Row], by: str) -> list[str]:
    """The value of each row as a string: of a column of the table, or of the prompts' own columns."""
    own = [json.loads(row["columns"] or "{}") for row in rows]
    if not any(by in row for row in rows) and not any(by in columns for columns in own):
        names = sorted({name for columns in own for name in columns} | {name for row in rows for name in row})
        raise DataError(
            f"sft.mix.balance.by: no row has a column {by!r}{did_you_mean(by, names)}",
            hint=f"columns are {', '.join(names)}",
        )
    found = [row[by] if by in row else columns.get(by) for row, columns in zip(rows, own, strict=True)]
    named = [level(value) if by == PASS_RATE else value for value in found]
    return [NOTHING if value is None else str(value) for value in named]
