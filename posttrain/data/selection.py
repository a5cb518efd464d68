"""Selects a round's training prompts: none is repeated until all were used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.errors import DataError, did_you_mean
from posttrain.seeds import derive_seed


def take(prompts: Sequence[Mapping[str, Any]], seed: int, start: int, count: int | None) -> list[Mapping[str, Any]]:
    """`count` prompts (rows with an `id`) from position `start` of an endless shuffled stream; None: all of them.

    Each pass over the prompts is shuffled anew. A slice that crosses into the next pass holds no prompt twice.
    """
    total = len(prompts)
    if count is None or count >= total:
        return list(prompts)
    taken: list[Mapping[str, Any]] = []
    seen: set[str] = set()
    passage, offset = divmod(start, total)
    while len(taken) < count:
        order = sorted(prompts, key=lambda prompt: derive_seed(seed, passage, prompt["id"]))
        for prompt in order[offset:]:
            if len(taken) < count and prompt["id"] not in seen:
                seen.add(prompt["id"])
                taken.append(prompt)
        passage, offset = passage + 1, 0
    return taken


def matching(prompts: Sequence[Mapping[str, Any]], where: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The prompts whose columns have these values; a column that a row has not is null.

    Raises:
        DataError: no prompt has one of the columns, or none matches.
    """
    if not where:
        return list(prompts)
    columns = [json.loads(prompt["columns"]) for prompt in prompts]
    names = {name for row in columns for name in row}
    for name in where:
        if name not in names:
            raise DataError(
                f"preferences.where: no training prompt has a column {name!r}{did_you_mean(name, sorted(names))}",
                hint=f"columns are {', '.join(sorted(names))}" if names else "the prompts have no columns of their own",
                rule="data-where",
            )
    found = [
        prompt
        for prompt, row in zip(prompts, columns, strict=True)
        if all(row.get(name) == value for name, value in where.items())
    ]
    if not found:
        raise DataError(
            f"preferences.where: no training prompt has {json.dumps(dict(where))} in its columns", rule="data-where"
        )
    return found


def nearest(rates: Sequence[tuple[str, float | None]], wanted: float, count: int) -> list[str]:
    """`count` ids whose pass rate is nearest to `wanted`; equally near ones in their order.

    Prompts without a rate (None: no answer has a score) get their share of `count`, the first ones.
    """
    unrated = [name for name, rate in rates if rate is None]
    rated = [(name, rate) for name, rate in rates if rate is not None]
    free = round(count * len(unrated) / max(len(rates), 1))
    ordered = sorted(rated, key=lambda one: abs(one[1] - wanted))
    return [*unrated[:free], *(name for name, _ in ordered[: count - free])]
