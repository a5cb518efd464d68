"""The accuracy of a planned run's rounds, from runs that cost less."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config.keys import name_of
from posttrain.errors import InputError
from posttrain.evaluation.forecast import FEWEST, Point, forecast
from posttrain.pipeline.answers import settings_of
from posttrain.pipeline.externals import ExternalInputs
from posttrain.pipeline.scored import in_key
from posttrain.recipe.recipe import Recipe
from posttrain.report.forecasts import heldout_prompts, points, to_learn_from
from posttrain.report.measure import Measure
from posttrain.report.reading import RunView, open_run


@dataclass(frozen=True)
class Cheaper:
    """Runs that cost less than the one that is planned: of its own starting model, and of other ones. `prompts`: of the
    held-out ones those that a function says something of."""

    own: list[list[Point]]
    others: list[list[Point]]
    prompts: int


def read(folders: Sequence[str], start: str, measure: Measure) -> Cheaper:
    """What these runs measured. `start`: the key of the planned run's starting model; `measure`: how that run will
    measure its held-out accuracy.

    Raises:
        InputError: there is no such run, it has not measured what a forecast is made from, or measured it otherwise, or
            none has this starting model.
    """
    own, others, prompts = list[list[Point]](), list[list[Point]](), 0
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
        (own if _started_from(run) == start else others).append(measured)
        prompts = heldout_prompts(run.rounds[len(measured) - 1])
    if not own:
        raise InputError(
            f"no run of `evaluate.forecast.runs` starts from the recipe's model: {', '.join(folders)}",
            hint=f"add {FEWEST} rounds of this recipe with fewer prompts. Runs of other models only say how it goes on",
            rule="forecast-other-model",
        )
    return Cheaper(own, others, prompts)


def measure_of(recipe: Recipe, external: ExternalInputs) -> Measure:
    """How a run of this recipe measures its held-out accuracy."""
    functions = recipe.functions()
    files = {name_of(one.use): external.rewards[one.use] for one in functions}
    return Measure.of(external.evaluated["heldout"], settings_of(recipe.evaluate), in_key("", functions)[""], files)


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


def _started_from(run: RunView) -> str | None:
    """The key of the starting model that a forecast of this run was measured with."""
    made = (one.manifests["forecast"] for one in run.rounds if "forecast" in one.manifests)
    return next((one["input_keys"]["policy_0"] for one in made), None)


def of_plan(runs: Cheaper, plan: Mapping[str, Any], k: int) -> list[dict[str, Any]]:
    """The forecast of each round of a plan, as `round`, `value` and `ci95`. Empty where there is nothing to go on. `k`:
    sampled answers to a held-out prompt."""
    total, numbers, answers = 0.0, list[int](), list[float]()
    for one in plan["rounds"]:
        roles = {part["stage"]: part["completions"] for part in one["stages"]}
        total += sum(count for role, count in roles.items() if to_learn_from(role))
        if one["round"]:
            numbers.append(one["round"])
            answers.append(total)
    found = forecast(runs.own, answers, others=runs.others, heldout_answers=runs.prompts * k or math.inf) or []
    return [{"round": number, **figure} for number, figure in zip(numbers, found, strict=False)]
