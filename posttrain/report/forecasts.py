"""What a run's first rounds say of the accuracy of later ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from posttrain.evaluation import statistics
from posttrain.report.reading import Round, RunView

if TYPE_CHECKING:
    from posttrain.evaluation.forecast import Point

# Roles whose answers something learns from, and what comes of their variants.
_LEARNED = ("answers_preferences", "answers_samples", "answers_pairs", "online")
BEYOND = 4  # rounds after the ones that a forecast is made from, which it shows at least


def to_learn_from(role: str) -> bool:
    """Whether a stage samples answers that something learns from, rather than to evaluate or to choose."""
    return role.startswith(_LEARNED)


def points(run: RunView) -> list[Point]:
    """The starting model and the first rounds as they were measured; empty where that is not done, or not asked for."""
    found = next((one.metrics("forecast")["points"] for one in run.rounds if one.metrics("forecast")), [])
    answers = spent(run)
    if not found or len(answers) < len(found):  # measured, while its last round is not decided yet
        return []
    if any(one["accuracy"] is None for one in found):  # of a round in which no function judged an answer
        return []
    from posttrain.evaluation.forecast import Point  # here, since it imports numpy

    return [
        Point(answers[number], one["nll"], one["accuracy"], *_heldout(run.rounds[number], one["accuracy"]))
        for number, one in enumerate(found)
    ]


def _heldout(one: Round, accuracy: float) -> tuple[float, float]:
    """How many held-out answers a round's pass@1 is of, and the share of its variance that lies within prompts: the
    mean of p (1 − p) over prompts, which pass@2 − pass@1 estimates, over that of all answers."""
    measured, asked = one.metrics("heldout").get("heldout", {}), one.manifests.get("answers_heldout", {})
    pairs, total = measured.get("pass@2", {}).get("value"), accuracy * (1 - accuracy)
    within = 1.0 if pairs is None or not total else min(max((pairs - accuracy) / total, 0.0), 1.0)
    return heldout_prompts(one) * asked.get("config", {}).get("answers", {}).get("k", 0) or math.inf, within


def heldout_prompts(one: Round) -> int:
    """The held-out prompts that a function said something of."""
    return one.metrics("heldout").get("heldout", {}).get("pass@1", {}).get("n", 0)


def of_run(run: RunView) -> list[dict[str, Any]] | None:
    """The forecast of each round after those that it was made from, as `round`, `value` and `ci95`, and what `came`:
    held-out pass@1, None before. A later round is taken to sample as much as the last one did. None without points;
    empty where there is nothing to go on."""
    measured, answers = points(run), spent(run)
    if not measured:
        return None
    from posttrain.evaluation.forecast import forecast

    first, last = len(measured), max(len(answers), len(measured) + BEYOND)
    each = answers[-1] - answers[-2]
    answers += [answers[-1] + each * more for more in range(1, 1 + last - len(answers))]
    found = forecast([measured], answers[first:], heldout_answers=measured[-1].heldout_answers)
    came = {one.number: heldout_accuracy(one) for one in run.rounds}
    return [
        {"round": number, **figure, "came": came.get(number)} for number, figure in enumerate(found or [], start=first)
    ]


def in_words(found: Sequence[Mapping[str, Any]]) -> str:
    """The rounds to come, and how many of those that came lie inside: `round 3: 0.702 [0.671, 0.731], …`."""
    if not found:
        return "no forecast of held-out pass@1: the measured rounds show no gain to go on, or nothing is left to gain"
    to_come = [f"round {one['round']}: {statistics.in_words(one)}" for one in found if one.get("came") is None]
    inside, came = inside_of(found)
    past = [f"{inside} of the {came} rounds that came since lie inside"] if came else []
    return f"forecast of held-out pass@1: {'; '.join([*past, *([', '.join(to_come)] if to_come else [])])}"


def inside_of(found: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """How many forecasts hold what came, of how many that came."""
    came = [one for one in found if one.get("came") is not None]
    return sum(one["ci95"][0] <= one["came"] <= one["ci95"][1] for one in came), len(came)


def spent(run: RunView, what: str = "completions") -> list[float]:
    """The answers sampled to learn from until the end of each round that is decided, or their `tokens`. It ends where
    what a round sampled cannot be read any more."""
    total, found = 0.0, list[float]()
    for one in run.rounds:
        unread = one.keys.keys() - one.manifests.keys()
        if one.promoted is None or any(map(to_learn_from, unread)):
            break
        for role, made in one.manifests.items():
            if to_learn_from(role):
                total += made["metrics"].get(what, 0.0)
        found.append(total)
    return found


def heldout_accuracy(one: Round) -> float | None:
    """pass@1 on the held-out prompts; None where it is not known."""
    return one.metrics("heldout").get("heldout", {}).get("pass@1", {}).get("value")
