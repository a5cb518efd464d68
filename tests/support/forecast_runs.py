"""A run of two rounds that has measured what a forecast is made from, as it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.report.reading import Round, RunView

K, PROMPTS = 4, 90
REWARD = {"use": "sums.py", "function": None, "weight": 1.0, "for": "scores"}
NLL, ACCURACY = (0.8, 0.5, 0.42), (0.24, 0.54, 0.6)


def a_round(
    number: int,
    came: float,
    promoted: bool | None = True,
    start: str = "base-1",
    heldout: str = "set-1",
    **more: dict[str, Any],
) -> Round:
    sampled = {"answers_samples": 100.0, "answers_pairs": 20.0} if number else {}
    made: dict[str, dict[str, Any]] = {role: {"completions": count} for role, count in sampled.items()}
    made |= {
        "answers_dev": {"completions": 9.0},
        "heldout": {"heldout": {"pass@1": {"value": came, "n": PROMPTS}, "pass@2": {"value": came + 0.1}}},
    }
    stages = {
        role: {"stage": role.partition("_")[0], "metrics": metrics, "input_keys": {"policy_0": start}}
        for role, metrics in {**made, **more}.items()
    }
    stages["answers_heldout"] = {"stage": "answers", "metrics": {}, "config": {"answers": {"k": K, "temperature": 1.0}}}
    stages["heldout"] |= {"config": {"rewards": [REWARD]}, "outside": {"sums.py": "1", "measured.py": "2"}}
    if not number:
        stages["prompts"] = {"stage": "prompts", "metrics": {}, "outside": {"heldout": heldout}}
    return Round(number, promoted, None, {}, stages)


def a_run(*later: Round, start: str = "base-1", heldout: str = "set-1") -> RunView:
    points = [{"nll": nll, "accuracy": right} for nll, right in zip(NLL, ACCURACY, strict=True)]
    first = [a_round(number, ACCURACY[number], heldout=heldout) for number in range(2)]
    return RunView(Path("run"), "mine", "", (*first, a_round(2, 0.6, start=start, forecast={"points": points}), *later))
