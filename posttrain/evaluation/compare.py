"""Compares policies on the same prompts: means, paired changes, win rates, warnings. Pure.

The sides are the round's policy, the last one promoted before it, and the base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.data.tables import GREEDY, SAMPLED
from posttrain.evaluation import head_to_head, statistics
from posttrain.evaluation.statistics import Figure

POLICY, BASE = "policy", "base"
OTHERS = {"previous": "the last promoted policy", BASE: "the base"}
FIGURES = {
    "proxy_reward": "the proxy reward",
    "heldout_reward": "the held-out reward",
    "length": "the length",
    "accuracy": "the accuracy",
}


def summary(rows: Sequence[Mapping[str, Any]], judges: Sequence[str], seed: int) -> dict[str, Any]:
    """`figures` by side, `changes` and `win_rates` against each other side, `warnings`: from rows of COMPARED."""
    sampled = [json.loads(row["figures"]) for row in rows if row["tag"] == SAMPLED]
    greedy = [(json.loads(row["figures"]), json.loads(row["preferences"])) for row in rows if row["tag"] == GREEDY]
    others = [side for side in OTHERS if side in sampled[0]]

    def change(other: str, name: str) -> Figure:
        pairs = [(sides[POLICY][name], sides[other][name]) for sides in sampled]
        known = [(new, old) for new, old in pairs if new is not None and old is not None]
        if not known:
            return statistics.mean([])
        return statistics.paired_difference([new for new, _ in known], [old for _, old in known], seed)

    def wins(other: str, judge: str) -> dict[str, Any]:
        compared = [
            (verdicts[other][judge], sides[POLICY]["length"] - sides[other]["length"]) for sides, verdicts in greedy
        ]
        return head_to_head.wins([one for one, _ in compared], [one for _, one in compared])

    changes = {other: {name: change(other, name) for name in FIGURES} for other in others}
    return {
        "figures": {
            side: {
                name: statistics.mean([sides[side][name] for sides in sampled if sides[side][name] is not None])
                for name in FIGURES
            }
            for side in (POLICY, *others)
        },
        "changes": changes,
        "win_rates": {other: {judge: wins(other, judge) for judge in judges} for other in others},
        "warnings": warnings(changes),
    }


def warnings(changes: Mapping[str, Mapping[str, Figure]]) -> list[str]:
    """One sentence per side against which the proxy reward rose while the held-out reward or the accuracy fell.

    A change counts if the whole 95 % interval of the paired difference is above, or below, 0.
    """
    said = []
    for other, change in changes.items():
        proxy = change["proxy_reward"]
        if proxy["value"] is None or proxy["ci95"][0] <= 0:
            continue
        fell = [
            f"{FIGURES[name]} fell by {_span(change[name], -1)}"
            for name in ("heldout_reward", "accuracy")
            if change[name]["value"] is not None and change[name]["ci95"][1] < 0
        ]
        if fell:
            said.append(
                f"against {OTHERS[other]}, {FIGURES['proxy_reward']} rose by {_span(proxy, 1)} while "
                f"{' and '.join(fell)}: the policy may be learning to please its reward model"
            )
    return said


def _span(figure: Figure, sign: int) -> str:
    low, high = sorted(sign * bound for bound in figure["ci95"])
    return f"{sign * figure['value']:.3f} [{low:.3f}, {high:.3f}]"
