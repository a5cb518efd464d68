"""A forecast as it is read from runs, and for a plan."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import InputError
from posttrain.evaluation.forecast import Point, forecast
from posttrain.loop import play
from posttrain.pipeline.externals import external_inputs
from posttrain.planning.dry_run import DryRunner
from posttrain.recipe.load import load
from posttrain.report import figures, forecasts
from posttrain.report.forecasts import Cheaper
from posttrain.report.measure import Measure
from posttrain.report.reading import Round, RunView
from posttrain.report.status import table

REWARD = {"use": "sums.py", "function": None, "weight": 1.0, "for": "scores"}
BY_CHANCE = math.sqrt(0.1 / (90 * 4))  # pass@2 − pass@1, over answers
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
        "heldout": {"heldout": {"pass@1": {"value": came, "ci95": None, "n": 90}, "pass@2": {"value": came + 0.1}}},
    }
    stages = {
        role: {"stage": role.partition("_")[0], "metrics": metrics, "input_keys": {"policy_0": start}}
        for role, metrics in {**made, **more}.items()
    }
    stages["answers_heldout"] = {"stage": "answers", "metrics": {}, "config": {"answers": {"k": 4, "temperature": 1.0}}}
    stages["heldout"] |= {"config": {"rewards": [REWARD]}, "outside": {"sums.py": "1", "measured.py": "2"}}
    if not number:
        stages["prompts"] = {"stage": "prompts", "metrics": {}, "outside": {"heldout": heldout}}
    return Round(number, promoted, None, {}, stages)


def a_run(*later: Round, start: str = "base-1", heldout: str = "set-1") -> RunView:
    points = [{"nll": nll, "accuracy": right} for nll, right in zip(NLL, ACCURACY, strict=True)]
    first = [a_round(number, ACCURACY[number], heldout=heldout) for number in range(2)]
    return RunView(Path("run"), "mine", "", (*first, a_round(2, 0.6, start=start, forecast={"points": points}), *later))


MEASURE = Measure("set-1", {"temperature": 1.0}, [REWARD], {"sums.py": "1"})


def test_later_rounds_are_forecast_by_what_is_sampled_to_learn_from() -> None:
    run = a_run(a_round(3, 0.65), a_round(4, 0.99))
    measured = forecasts.points(run)
    assert [(one.spent, one.nll, one.accuracy) for one in measured] == list(
        zip((0.0, 120.0, 240.0), NLL, ACCURACY, strict=True)
    )
    assert [one.error for one in measured] == pytest.approx([BY_CHANCE] * 3)
    found = forecasts.of_run(run) or []
    assert [one["round"] for one in found] == [3, 4, 5, 6] and [one["came"] for one in found] == [
        0.65,
        0.99,
        None,
        None,
    ]
    wanted = forecast([measured], [360.0, 480.0, 600.0, 720.0])
    assert wanted and [one["value"] for one in found] == [one["value"] for one in wanted]
    (chart,) = figures.forecast(run.rounds, found)
    assert "1 of the 2 that came since lie inside" in chart.caption


def test_a_round_under_way_counts_for_nothing_yet() -> None:
    assert [one["round"] for one in forecasts.of_run(a_run(a_round(3, 0.62, None))) or []] == [3, 4, 5, 6]
    assert forecasts.of_run(RunView(Path("run"), "mine", "", (a_round(0, 0.24),))) is None
    measured = a_run().rounds
    undecided = RunView(Path("run"), "mine", "", (*measured[:2], replace(measured[2], promoted=None)))
    assert forecasts.of_run(undecided) is None
    assert figures.forecast((), []) == []


def test_what_on_policy_training_samples_is_learned_from_and_what_chooses_prompts_is_not() -> None:
    online, difficulty = {"completions": 30.0}, {"completions": 500.0}
    learning = a_round(1, 0.3, online=online, answers_difficulty=difficulty)
    run = RunView(Path("run"), "mine", "", (a_round(0, 0.2), learning))
    assert forecasts.spent(run) == [0.0, 150.0]


def test_a_round_that_no_function_judged_gives_no_forecast() -> None:
    points = [{"nll": 0.5, "accuracy": 0.4}, {"nll": 0.4, "accuracy": None}, {"nll": 0.3, "accuracy": 0.6}]
    unjudged = (a_round(0, 0.2), a_round(1, 0.3), a_round(2, 0.6, forecast={"points": points}))
    assert forecasts.of_run(RunView(Path("run"), "mine", "", unjudged)) is None


def test_a_plan_is_forecast_by_runs_that_cost_less() -> None:
    measured = forecasts.points(a_run())

    def stage(role: str, completions: int) -> dict[str, Any]:
        return {"stage": role, "completions": completions}

    rounds = [
        {"round": number, "stages": [stage("answers_samples", 200), stage("answers_heldout", 50), stage("sft", 0)]}
        for number in range(4)
    ]
    rounds[0]["stages"] = rounds[0]["stages"][1:]
    rounds[1]["stages"].append(stage("benchmark_gsm8k", 1000))  # nothing learns from these
    found = forecasts.of_plan(Cheaper([measured], []), {"rounds": rounds})
    wanted = forecast([measured], [200.0, 400.0, 600.0])
    assert wanted and [one["value"] for one in found] == [one["value"] for one in wanted]
    assert forecasts.in_words(found).startswith("forecast of held-out pass@1: round 1: 0.")
    other = [Point(120.0 * at, 0.9 * (1 + 12 * at) ** -0.1, 0.2 + 0.05 * at) for at in range(7)]
    found = forecasts.of_plan(Cheaper([measured], [other]), {"rounds": rounds})
    wanted = forecast([measured], [200.0, 400.0, 600.0], others=[other])
    assert wanted and [one["value"] for one in found] == [one["value"] for one in wanted]


def test_runs_are_told_apart_by_their_starting_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "open_run", lambda folder: a_run())
    measured = forecasts.points(a_run())
    assert forecasts.cheaper(["runs/half", "runs/../runs/half"], "base-1", MEASURE) == Cheaper([measured], [])  # once
    with pytest.raises(InputError, match=r"no run .* starts from the recipe's model.*\[forecast-other-model\]"):
        forecasts.cheaper(["runs/half"], "base-2", MEASURE)
    found = {"runs/half": a_run(), "runs/small": a_run(start="base-2")}
    monkeypatch.setattr(forecasts, "open_run", lambda folder: found[folder])
    assert forecasts.cheaper(list(found), "base-1", MEASURE) == Cheaper([measured], [measured])


def test_a_run_without_points_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"there is no run here.*\[command-no-run\]"):
        forecasts.cheaper([str(tmp_path)], "base-1", MEASURE)
    monkeypatch.setattr(forecasts, "open_run", lambda folder: RunView(Path(folder), "mine", "", (a_round(0, 0.2),)))
    with pytest.raises(InputError, match=r"nothing to forecast from.*\[forecast-no-points\]"):
        forecasts.cheaper(["runs/half"], "base-1", MEASURE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": "set-2"}, "was asked other held-out prompts"),
        ({"files": {"sums.py": "2"}}, "score held-out answers by other versions or weights of sums"),
        ({"rewards": []}, "score held-out answers by sums and by no function"),
        ({"sampling": {"temperature": 0.5}}, "sample held-out answers with {'temperature': 1.0} and with"),
    ],
)
def test_a_run_that_measures_something_else_is_refused(
    change: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasts, "open_run", lambda folder: a_run())
    with pytest.raises(InputError, match=rf"{re.escape(said)}.*\[forecast-unlike\]"):
        forecasts.cheaper(["runs/half"], "base-1", replace(MEASURE, **change))


def test_the_measure_of_a_run_is_that_of_its_recipe(tmp_path: Path) -> None:
    recipe = load("quickstart")
    external = external_inputs(recipe)
    planned = Measure.of_recipe(recipe, external)
    assert planned.names() == "word-problems" and planned.sampling["temperature"] == recipe.evaluate.temperature
    runner = DryRunner()
    play(recipe, runner, 1)
    (scored,) = [one for one in runner.stages if one.role == "heldout" and not one.number]
    assert planned.rewards == scored.config["rewards"]


def test_a_round_of_which_something_is_lost_ends_what_is_known() -> None:
    run = a_run(a_round(3, 0.65))
    assert len(forecasts.spent(run)) == 4
    lost = replace(run.rounds[3], keys={"answers_pairs": "answers-1", "answers_more": "answers-2"})
    assert len(forecasts.spent(replace(run, rounds=(*run.rounds[:3], lost)))) == 3


def test_status_says_it_in_a_line() -> None:
    def said(*found: dict[str, Any]) -> str:
        return table({"rounds": [], "pushed": [], "forecast": list(found)})

    expected = {"round": 3, "value": 0.7, "ci95": [0.65, 0.75]}
    assert "forecast of held-out pass@1: round 3: 0.700 [0.650, 0.750]" in said(expected)
    came = [{**expected, "came": 0.8}, {**expected, "round": 4, "came": 0.7}]
    past = "1 of the 2 rounds that came since lie inside"
    assert said(*came).endswith(past)
    assert said(*came, {**expected, "round": 5, "came": None}).endswith(f"{past}; round 5: 0.700 [0.650, 0.750]")
    assert "no forecast of held-out pass@1: the measured rounds show no gain" in said()
