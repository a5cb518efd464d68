"""A forecast as it is read from a run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.forecast_runs import ACCURACY, NLL, PROMPTS, K, a_round, a_run

from posttrain.evaluation.forecast import forecast
from posttrain.report import figures, forecasts
from posttrain.report.reading import RunView
from posttrain.report.status import table


def test_later_rounds_are_forecast_by_what_is_sampled_to_learn_from() -> None:
    run = a_run(a_round(3, 0.65), a_round(4, 0.99))
    measured = forecasts.points(run)
    assert [(one.spent, one.nll, one.accuracy) for one in measured] == list(
        zip((0.0, 120.0, 240.0), NLL, ACCURACY, strict=True)
    )
    # 0.1 is pass@2 − pass@1, the mean of p (1 − p) over prompts
    by_chance = [math.sqrt(0.1 / (K * PROMPTS)) / (right * (1 - right)) for right in ACCURACY]
    assert [one.error() for one in measured] == pytest.approx(by_chance, rel=0.02)
    found = forecasts.of_run(run) or []
    assert [one["round"] for one in found] == [3, 4, 5, 6] and [one["came"] for one in found] == [
        0.65,
        0.99,
        None,
        None,
    ]
    wanted = forecast([measured], [360.0, 480.0, 600.0, 720.0], heldout_answers=K * PROMPTS)
    assert wanted and [one["ci95"] for one in found] == [one["ci95"] for one in wanted]
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
    online, other = {"completions": 30.0}, {"completions": 500.0}
    learning = a_round(1, 0.3, online=online, answers_difficulty=other, answers_dpo_mean=other)
    run = RunView(Path("run"), "mine", "", (a_round(0, 0.2), learning))
    assert forecasts.spent(run) == [0.0, 150.0]


def test_a_round_that_no_function_judged_gives_no_forecast() -> None:
    points = [{"nll": 0.5, "accuracy": 0.4}, {"nll": 0.4, "accuracy": None}, {"nll": 0.3, "accuracy": 0.6}]
    unjudged = (a_round(0, 0.2), a_round(1, 0.3), a_round(2, 0.6, forecast={"points": points}))
    assert forecasts.of_run(RunView(Path("run"), "mine", "", unjudged)) is None


def test_a_round_of_which_something_is_lost_ends_what_is_known() -> None:
    run = a_run(a_round(3, 0.65))
    assert len(forecasts.spent(run)) == 4

    def without(role: str) -> int:
        manifests = {name: made for name, made in run.rounds[3].manifests.items() if name != role}
        lost = replace(run.rounds[3], keys=dict.fromkeys(run.rounds[3].manifests, ""), manifests=manifests)
        return len(forecasts.spent(replace(run, rounds=(*run.rounds[:3], lost))))

    assert without("answers_pairs") == 3 and without("answers_dev") == 4


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
