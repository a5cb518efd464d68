"""The charts of step reward models, search and correction."""

from __future__ import annotations

from typing import Any

from posttrain.report import reasoning
from posttrain.report.charts import Lines
from posttrain.report.reading import Round


def a_round(number: int, **metrics: dict[str, Any]) -> Round:
    manifests = {name: {"stage": name, "metrics": one} for name, one in metrics.items()}
    return Round(number, True, None, {}, manifests)


def drawn(charts: list[Any]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    assert all(isinstance(one, Lines) for one in charts)
    return {one.id: {curve.name: [(at.at, at.value) for at in curve.points] for curve in one.series} for one in charts}


def test_a_search_shows_what_it_solved_of_what_it_was_asked_and_what_a_solution_cost() -> None:
    first = a_round(1, search={"prompts": {"asked": 200, "solved": 50}, "tokens": 10_000})
    nothing = a_round(2, search={"prompts": {"asked": 0, "solved": 0}, "tokens": 0})
    other = {"prompts": {"asked": 10, "solved": 5}, "tokens": 500, "solved": [5]}
    third = a_round(3, search={"prompts": {"asked": 4, "solved": 0}, "tokens": 900}, correction=other)
    found = drawn(reasoning.found([a_round(0), first, nothing, third]))
    assert found == {
        "found": {"search": [(1, 0.25), (3, 0.0)], "correction": [(3, 0.5)]},
        "found-cost": {"search": [(1, 200.0)], "correction": [(3, 100.0)]},
    }


def test_a_step_reward_model_is_shown_by_what_it_finds() -> None:
    error = {"value": 0.6, "ci95": [0.5, 0.7], "n": 90}
    found = drawn(reasoning.steps([a_round(1, step_reward={"error": error, "right": None, "f1": 0.3})]))
    assert found == {
        "step-reward": {
            "answers with a mistake, whose first one is found": [(1, 0.6)],
            "F1 of both": [(1, 0.3)],
        }
    }


def test_a_run_without_them_has_no_such_charts() -> None:
    rounds = [a_round(0), a_round(1, online={"curve": {}})]
    assert reasoning.steps(rounds) == [] and reasoning.found(rounds) == []
