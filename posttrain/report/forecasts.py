"""What a run, or runs that cost less, say of the accuracy of later rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import InputError
from posttrain.evaluation import statistics
from posttrain.report.reading import Round, RunView, open_run
from posttrain.stages.registry import spec

if TYPE_CHECKING:
    from posttrain.evaluation.forecast import Point

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

    return [Point(answers[number], one["nll"], one["accuracy"]) for number, one in enumerate(found)]


def of_run(run: RunView) -> list[dict[str, Any]]:
    """The forecast of each round after those that it was made from, as `round`, `value` and `ci95`, and what `came`:
    held-out pass@1, None before. A later round is taken to sample as much as the last one did. Empty without points."""
    measured, answers = points(run), spent(run)
    if not measured:
        return []
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


def cheaper(folders: Sequence[str], start: str) -> Cheaper:
    """What these runs measured. `start`: the key of the planned run's starting model.

    Raises:
        InputError: there is no such run, or it has not measured what a forecast is made from, or none has this starting
            model.
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
        (found.own if started_from(run) == start else found.others).append(measured)
    if not found.own:
        raise InputError(
            f"no run of `evaluate.forecast.runs` starts from the recipe's model: {', '.join(folders)}",
            hint=f"add {FEWEST} rounds of this recipe with fewer prompts. Runs of other models only say how it goes on",
            rule="forecast-other-model",
        )
    return found


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
        sampled = {role: count for role, count in roles.items() if role.startswith(("answers", "online"))}
        total += sum(count for role, count in sampled.items() if to_learn_from(role.partition("_")[0], role))
        if one["round"]:
            numbers.append(one["round"])
            answers.append(total)
    found = forecast(runs.own, answers, others=runs.others) or []
    return [{"round": number, **figure} for number, figure in zip(numbers, found, strict=False)]


def in_words(found: Sequence[Mapping[str, Any]]) -> str:
    """One line: `round 3: 0.702 [0.671, 0.731], …`."""
    return ", ".join(f"round {one['round']}: {statistics.in_words(one)}" for one in found)


def spent(run: RunView, what: str = "completions") -> list[float]:
    """The answers sampled to learn from until the end of each round that is decided, or their `tokens`."""
    total, found = 0.0, list[float]()
    for one in run.rounds:
        if one.promoted is None:
            break
        for role, made in one.manifests.items():
            if to_learn_from(made["stage"], role):
                total += made["metrics"].get(what, 0.0)
        found.append(total)
    return found


def heldout_accuracy(one: Round) -> float | None:
    """pass@1 on the held-out prompts; None where it is not known."""
    return one.metrics("heldout").get("heldout", {}).get("pass@1", {}).get("value")
