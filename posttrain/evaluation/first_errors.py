"""How well something finds the first wrong step of an answer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.evaluation import statistics


def found(called: Sequence[int | None], wrong: Sequence[int | None]) -> dict[str, Any]:
    """By answer the first step that was called wrong and the first that is, None where there is none.

    `error`: of the answers with a wrong step, the share in which that one was called; `right`: of those without, the
    share in which none was; `f1`: their harmonic mean, as ProcessBench has it (Zheng et al. 2024, arXiv 2412.06559).
    None where there are no such answers.
    """
    both = list(zip(called, wrong, strict=True))
    hits = {
        "error": [float(one == other) for one, other in both if other is not None],
        "right": [float(one is None) for one, other in both if other is None],
    }
    shares = {name: statistics.proportion(some) if some else None for name, some in hits.items()}
    values = [share["value"] for share in shares.values() if share]
    f1 = None if len(values) < 2 else 2 * values[0] * values[1] / sum(values) if sum(values) else 0.0
    return {**shares, "f1": f1}
