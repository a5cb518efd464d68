"""A forecast as it is read from runs, and for a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import InputError
from posttrain.evaluation.forecast import Point, forecast
from posttrain.report import figures, forecasts
from posttrain.report.forecasts import Cheaper
from posttrain.report.reading import Round, RunView
from posttrain.report.status import table

NLL, ACCURACY = (0.8, 0.5, 0.42), (0.24, 0.54, 0.6)


def a_round(
    number: int, came: float, promoted: bool | None = True, start: str = "base-1", **more: dict[str, Any]
) -> Round:
    sampled = {"answers_samples": 100.0, "answers_pairs": 20.0} if number else {}
    made: dict[str, dict[str, Any]] = {role: {"completions": count} for role, count in sampled.items()}
    made |= {
        "answers_dev": {"completions": 9.0},
        "heldout": {"heldout": {"pass@1": {"value": came, "ci95": None, "n": 9}}},
    }
    stages = {
        role: {"stage": role.partition("_")[0], "metrics": metrics, "input_keys": {"policy_0": start}}
        for role, metrics in {**made, **more}.items()
    }
    return Round(number, promoted, None, {}, stages)


def a_run(*later: Round, start: str = "base-1") -> RunView:
    points = [{"nll": nll, "accuracy": right} for nll, right in zip(NLL, ACCURACY, strict=True)]
    first = [a_round(number, ACCURACY[number]) for number in range(2)]
    return RunView(Path("run"), "mine", "", (*first, a_round(2, 0.6, start=start, forecast={"points": points}), *later))


def test_later_rounds_are_forecast_by_what_is_sampled_to_learn_from() -> None:
    run = a_run(a_round(3, 0.65), a_round(4, 0.99))
    measured = [Point(120.0 * at, nll, right) for at, (nll, right) in enumerate(zip(NLL, ACCURACY, strict=True))]
    assert forecasts.points(run) == measured
    found = forecasts.of_run(run)
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
    assert [one["round"] for one in forecasts.of_run(a_run(a_round(3, 0.62, None)))] == [3, 4, 5, 6]
    assert forecasts.of_run(RunView(Path("run"), "mine", "", (a_round(0, 0.24),))) == []
    measured = a_run().rounds
    undecided = RunView(Path("run"), "mine", "", (*measured[:2], replace(measured[2], promoted=None)))
    assert forecasts.of_run(undecided) == []
    assert figures.forecast((), []) == []


def test_what_on_policy_training_samples_is_learned_from_and_what_chooses_prompts_is_not() -> None:
    online, difficulty = {"completions": 30.0}, {"completions": 500.0}
    learning = a_round(1, 0.3, online=online, answers_difficulty=difficulty)
    run = RunView(Path("run"), "mine", "", (a_round(0, 0.2), learning))
    assert forecasts.spent(run) == [0.0, 150.0]


def test_a_round_that_no_function_judged_gives_no_forecast() -> None:
    points = [{"nll": 0.5, "accuracy": 0.4}, {"nll": 0.4, "accuracy": None}, {"nll": 0.3, "accuracy": 0.6}]
    unjudged = (a_round(0, 0.2), a_round(1, 0.3), a_round(2, 0.6, forecast={"points": points}))
    assert forecasts.of_run(RunView(Path("run"), "mine", "", unjudged)) == []


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
    assert forecasts.in_words(found).startswith("round 1: 0.")
    other = [Point(120.0 * at, 0.9 * (1 + 12 * at) ** -0.1, 0.2 + 0.05 * at) for at in range(7)]
    found = forecasts.of_plan(Cheaper([measured], [other]), {"rounds": rounds})
    wanted = forecast([measured], [200.0, 400.0, 600.0], others=[other])
    assert wanted and [one["value"] for one in found] == [one["value"] for one in wanted]


def test_runs_are_told_apart_by_their_starting_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "open_run", lambda folder: a_run())
    measured = forecasts.points(a_run())
    assert forecasts.cheaper(["runs/half", "runs/../runs/half"], "base-1") == Cheaper([measured], [])  # once
    with pytest.raises(InputError, match=r"no run .* starts from the recipe's model.*\[forecast-other-model\]"):
        forecasts.cheaper(["runs/half"], "base-2")
    found = {"runs/half": a_run(), "runs/small": a_run(start="base-2")}
    monkeypatch.setattr(forecasts, "open_run", lambda folder: found[folder])
    assert forecasts.cheaper(list(found), "base-1") == Cheaper([measured], [measured])


def test_a_run_without_points_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"there is no run here.*\[command-no-run\]"):
        forecasts.cheaper([str(tmp_path)], "base-1")
    monkeypatch.setattr(forecasts, "open_run", lambda folder: RunView(Path(folder), "mine", "", (a_round(0, 0.2),)))
    with pytest.raises(InputError, match=r"nothing to forecast from.*\[forecast-no-points\]"):
        forecasts.cheaper(["runs/half"], "base-1")


def test_status_says_it_in_a_line() -> None:
    shown = {"rounds": [], "pushed": [], "forecast": [{"round": 3, "value": 0.7, "ci95": [0.65, 0.75]}]}
    assert "forecast of held-out pass@1: round 3: 0.700 [0.650, 0.750]" in table(shown)
