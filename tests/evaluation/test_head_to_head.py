"""Two policies on the same prompts, with figures computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.data.tables import GREEDY, SAMPLED
from posttrain.evaluation import head_to_head
from posttrain.evaluation.statistics import clear


def _rows(prompt: str, tag: str, *scores: float | None, tokens: int = 10) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": prompt,
            "tag": tag,
            "n_tokens": tokens,
            "finish": "stop",
            "rewards": {"exact": score, "model": 9.0},
        }
        for score in scores
    ]


def _side(*groups: list[dict[str, Any]]) -> dict[str, head_to_head.Answers]:
    return head_to_head.by_prompt(groups)


def _right(rewards: Any) -> float | None:
    return None if rewards["exact"] is None else float(rewards["exact"] >= 0.5)


FIRST = _side(
    _rows("a", GREEDY, 0.0),
    _rows("a", SAMPLED, 1.0, 0.0, 0.0, 0.0),
    _rows("b", GREEDY, 1.0),
    _rows("b", SAMPLED, 0.0, 0.0, 0.0, 0.0),
    _rows("only here", GREEDY, 1.0),
)
SECOND = _side(
    _rows("b", GREEDY, 1.0),
    _rows("b", SAMPLED, 1.0, 0.2, tokens=30),
    _rows("a", GREEDY, 1.0),
    _rows("a", SAMPLED, 1.0, 1.0, tokens=30),
    _rows("c", GREEDY, 1.0),
)


def test_figures_are_of_the_prompts_that_both_answered() -> None:
    found, rewards = head_to_head.figures(FIRST, SECOND, ["exact"], _right)
    means = {
        name: (one["first"]["value"], one["second"]["value"], one["difference"]["n"]) for name, one in found.items()
    }
    assert means == {
        "greedy": (0.5, 1.0, 2),
        "pass@1": (0.125, 0.75, 2),
        "pass@2": (0.25, 1.0, 2),  # one right of four: a pair has it in 3 of 6 draws
        "length": (10, 30, 2),
        "unfinished": (0, 0, 2),
    }
    assert found["greedy"]["difference"]["value"] == 0.5 and found["greedy"]["second"]["ci95"] == [1.0, 1.0]
    assert rewards.keys() == {"exact"}
    assert (rewards["exact"]["first"]["value"], rewards["exact"]["second"]["value"]) == pytest.approx((0.125, 0.8))


def test_a_reward_that_is_called_as_a_figure_is_another_one() -> None:
    side = _side([{**_rows("a", SAMPLED, 1.0)[0], "rewards": {"exact": 1.0, "length": 0.25}}])
    found, rewards = head_to_head.figures(side, side, ["length"], _right)
    assert found["length"]["first"]["value"] == 10 and rewards["length"]["first"]["value"] == 0.25


def test_what_no_function_scores_has_no_verdict() -> None:
    nothing = _side(_rows("a", GREEDY, None), _rows("a", SAMPLED, None))
    assert head_to_head.figures(nothing, nothing, ["exact"], _right)[0].keys() == {"length", "unfinished"}


def test_shares_stay_between_0_and_1() -> None:
    many = {str(at): head_to_head.Answers(_rows("", GREEDY, float(at > 0))[0]) for at in range(10)}
    low, high = head_to_head.figures(many, many, [], _right)[0]["greedy"]["first"]["ci95"]
    assert 0.5 < low < 0.9 and high == 1.0


def test_a_difference_is_clear_where_its_interval_leaves_out_zero() -> None:
    assert clear({"value": 0.2, "ci95": [0.1, 0.3], "n": 9})
    assert clear({"value": -0.2, "ci95": [-0.3, -0.1], "n": 9})
    assert not clear({"value": 0.2, "ci95": [0.0, 0.4], "n": 9})
    assert not clear({"value": 1.0, "ci95": [1.0, 1.0], "n": 1})  # of one prompt nobody knows


def test_win_rates_leave_out_what_no_judge_said() -> None:
    found = head_to_head.wins([1.0, 0.5, None, 0.0, 1.0], [3, 0, 9, -2, 1])
    assert found["raw"]["value"] == pytest.approx(2.5 / 4) and found["raw"]["n"] == 4
    assert found["ties"] == 0.25


def test_a_side_that_wins_by_length_does_not_at_one_length() -> None:
    longer = [float(at % 7 + 1) * (-1 if at % 4 == 0 else 1) for at in range(80)]  # three times of four
    found = head_to_head.wins([float(by > 0) for by in longer], longer)
    assert found["raw"]["ci95"][0] > 0.6
    low, high = found["length_controlled"]["ci95"]
    assert low < 0.5 < high


def test_the_clearest_examples_come_first_on_either_side() -> None:
    said: dict[str, dict[str, float | None]] = {
        "tie": {"one": 0.5, "other": 0.5},
        "a little": {"one": 0.5, "other": 1.0},
        "second": {"one": 1.0, "other": 1.0},
        "unknown": {"one": None, "other": None},
        "first": {"one": 0.0, "other": None},
        "also second": {"one": 1.0, "other": None},
    }
    assert head_to_head.examples(said, 2) == (["second", "also second"], ["first"])
