"""What a run, or runs that cost less, say of the accuracy of later rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import InputError
from posttrain.evaluation import statistics
from posttrain.report.measure import Measure
from posttrain.report.reading import Round, RunView, open_run
from posttrain.stages.registry import spec

if TYPE_CHECKING:
    from posttrain.evaluation.forecast import Point

_SAMPLING = ("answers", "online")  # stages, by which roles begin
BEYOND = 4  # rounds after the ones that a forecast is made from, which it shows at least


def to_learn_from(stage: str, role: str) -> bool:
    """Whether a stage samples answers that something learns from, rather than to evaluate or to choose prompts."""
    kind = spec(stage, role)
    sampled = kind.samples and kind.group == "sampling and scoring" and role != "answers_difficulty"
    return sampled or stage == "online"


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
        Point(spent, one["nll"], one["accuracy"], _by_chance(run.rounds[number], one["accuracy"]))
        for number, (one, spent) in enumerate(zip(found, answers, strict=False))
    ]


def _by_chance(one: Round, accuracy: float) -> float:
    """The standard deviation of a round's pass@1 by the chance of what was sampled, on the same prompts. Where p of a
    prompt's answers are right it is √(mean of p(1 − p) / answers), and that mean is pass@2 − pass@1."""
    measured, asked = one.metrics("heldout").get("heldout", {}), one.manifests.get("answers_heldout", {})
    pairs = measured.get("pass@2", {}).get("value")
    within = accuracy * (1 - accuracy) if pairs is None else max(pairs - accuracy, 0.0)
    count = measured.get("pass@1", {}).get("n", 0) * asked.get("config", {}).get("answers", {}).get("k", 0)
    return math.sqrt(within / count) if count else 0.0


def of_run(run: RunView) -> list[dict[str, Any]] | None:
    """The forecast of each round after those that it was made from, as `round`, `value` and `ci95`, and what `came`:
    held-out pass@1, None before. A later round is taken to sample as much as the last one did. None without points;
    empty where the rounds show no gain to go on."""
    measured, answers = points(run), spent(run)
    if not measured:
        return None
    from posttrain.evaluation.forecast import forecast

    first, last = len(measured), max(len(answers), len(measured) + BEYOND)
    each = answers[-1] - answers[-2]
    answers += [answers[-1] + each * more for more in range(1, 1 + last - len(answers))]
    found = forecast([measured], answers[first:])
    came = {one.number: heldout_accuracy(one) for one in run.rounds}
    return [
        {"round": number, **figure, "came": came.get(number)} for number, figure in enumerate(found or [], start=first)
    ]


@dataclass(frozen=True)
class Cheaper:
    """Runs that cost less than the one that is planned: of its own starting model, and of other ones."""

    own: list[list[Point]]
    others: list[list[Point]]


def cheaper(folders: Sequence[str], start: str, measure: Measure) -> Cheaper:
    """What these runs measured. `start`: the key of the planned run's starting model; `measure`: how that run will
    measure its held-out accuracy.

    Raises:
        InputError: there is no such run, it has not measured what a forecast is made from, or measured it otherwise, or
            none has this starting model.
    """
    from posttrain.evaluation.forecast import FEWEST

    found = Cheaper([], [])
    for folder in {Path(folder).resolve(): folder for folder in folders}.values():  # a run counts once
        run = open_run(folder)
        measured = points(run)
        if len(measured) <= FEWEST:
            raise InputError(
                "this run has nothing to forecast from",
                file=folder,
                hint=f"run its recipe with `--n {FEWEST} --set evaluate.forecast.rounds={FEWEST}`, or with more rounds",
                rule="forecast-no-points",
            )
        _check_measure(folder, Measure.of_run(run), measure)
        (found.own if started_from(run) == start else found.others).append(measured)
    if not found.own:
        raise InputError(
            f"no run of `evaluate.forecast.runs` starts from the recipe's model: {', '.join(folders)}",
            hint=f"add {FEWEST} rounds of this recipe with fewer prompts. Runs of other models only say how it goes on",
            rule="forecast-other-model",
        )
    return found


def _check_measure(folder: str, found: Measure, wanted: Measure) -> None:
    if found.prompts != wanted.prompts:
        said = "was asked other held-out prompts than the recipe's"
    elif told := found.scored_otherwise(wanted):
        said = f"and the recipe score held-out answers {told}"
    elif told := found.sampled_otherwise(wanted):
        said = f"and the recipe sample held-out answers {told}"
    else:
        return
    raise InputError(
        f"this run {said}: its accuracy says nothing of this one's",
        file=folder,
        hint="run this recipe with fewer prompts or for fewer rounds, and leave `prompts.heldout`, `reward` and "
        "`evaluate` as they are",
        rule="forecast-unlike",
    )


def started_from(run: RunView) -> str | None:
    """The key of the starting model that a forecast of this run was measured with."""
    made = (one.manifests["forecast"] for one in run.rounds if "forecast" in one.manifests)
    return next((one["input_keys"]["policy_0"] for one in made), None)


def of_plan(runs: Cheaper, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The forecast of each round of a plan, as `round`, `value` and `ci95`. Empty where the runs show no gain."""
    from posttrain.evaluation.forecast import forecast

    total, numbers, answers = 0.0, list[int](), list[float]()
    for one in plan["rounds"]:
        roles = {part["stage"]: part["completions"] for part in one["stages"]}
        sampled = {role: count for role, count in roles.items() if role.startswith(_SAMPLING)}
        total += sum(count for role, count in sampled.items() if to_learn_from(role.partition("_")[0], role))
        if one["round"]:
            numbers.append(one["round"])
            answers.append(total)
    found = forecast(runs.own, answers, others=runs.others) or []
    return [{"round": number, **figure} for number, figure in zip(numbers, found, strict=False)]


def in_words(found: Sequence[Mapping[str, Any]]) -> str:
    """The rounds to come, and how many of those that came lie inside: `round 3: 0.702 [0.671, 0.731], …`."""
    if not found:
        return "no forecast of held-out pass@1: the measured rounds show no gain to go on"
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
        if one.promoted is None or any(role.startswith(_SAMPLING) for role in unread):
            break
        for role, made in one.manifests.items():
            if to_learn_from(made["stage"], role):
                total += made["metrics"].get(what, 0.0)
        found.append(total)
    return found


def heldout_accuracy(one: Round) -> float | None:
    """pass@1 on the held-out prompts; None where it is not known."""
    return one.metrics("heldout").get("heldout", {}).get("pass@1", {}).get("value")
