"""What a policy has by heart: n-grams of rows that it continues word for word, as Llama 3's report has them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from posttrain.evaluation import statistics
from posttrain.evaluation.statistics import Figure
from posttrain.seeds import derive_seed


def window(row: str, length: int, n: int) -> int | None:
    """Where the n-gram begins that is asked for in an answer of `length` tokens: the same place for the same row. None
    where the answer is shorter."""
    return derive_seed("memorisation", row) % (length - n + 1) if length >= n else None


def figures(found: Sequence[tuple[float, bool]], n: int, too_short: int) -> dict[str, Any]:
    """`verbatim`: the share of n-grams that greedy decoding continues word for word; `probability`: of a token of such
    an n-gram given all before it, the geometric mean, averaged over n-grams. found: the log-likelihood of each, and
    whether each of its tokens is the likeliest."""
    return {
        "verbatim": statistics.proportion([float(greedy) for _, greedy in found]),
        "probability": statistics.mean([math.exp(total / n) for total, _ in found]),
        "too_short": too_short,
    }


def apart(trained: Figure, other: Figure) -> Figure:
    """The difference of two means of different rows, with its normal 95 % interval."""
    if trained["value"] is None or other["value"] is None:
        return {"value": None, "ci95": None, "n": 0}
    value = trained["value"] - other["value"]
    half = math.hypot(*((figure["ci95"][1] - figure["ci95"][0]) / 2 for figure in (trained, other)))
    return {"value": value, "ci95": [value - half, value + half], "n": trained["n"] + other["n"]}
