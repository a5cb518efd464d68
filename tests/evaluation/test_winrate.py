"""Win rates and their length-controlled form, against numbers worked out apart from the code."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from posttrain.evaluation.win_rate import RIDGE, length_controlled, preference, win_rate
from posttrain.rewards.pairwise import agreed


def test_a_win_a_loss_a_tie_and_no_score() -> None:
    assert [preference(2.0, 1.0), preference(1.0, 2.0), preference(1.5, 1.5)] == [1.0, 0.0, 0.5]
    assert preference(None, 1.0) is preference(1.0, None) is None


def test_a_tie_counts_one_half_and_the_interval_is_the_means() -> None:
    figure = win_rate([1.0, 1.0, 0.5, 0.0])
    deviation = math.sqrt((0.375**2 * 2 + 0.125**2 + 0.625**2) / 3)
    assert figure["value"] == 0.625
    assert figure["ci95"] == [pytest.approx(0.625 - 1.96 * deviation / 2), 1.0]  # cut at 1
    assert win_rate([]) == {"value": None, "ci95": None, "n": 0}


@pytest.mark.parametrize(
    ("there", "back", "expected"),
    [
        (1.0, 0.0, 1.0),  # the same answer on both sides of the swap
        (0.0, 1.0, 0.0),
        (0.9, 0.3, 0.8),  # (0.9 + 0.7) / 2
        (1.0, 1.0, 0.5),  # always the first side
        (0.8, 0.9, 0.5),  # the same, less sure
        (0.0, 0.0, 0.5),  # always the second
        (0.5, 0.1, 0.7),  # no contradiction: undecided once
        (None, 0.3, None),
    ],
)
def test_a_judge_of_pairs_is_asked_twice(there: float | None, back: float | None, expected: float | None) -> None:
    assert agreed(there, back) == (None if expected is None else pytest.approx(expected))


def test_the_same_answers_on_both_sides_give_exactly_one_half_both_ways() -> None:
    for longer in ([0] * 40, [*range(20), *(-one for one in range(20))]):
        assert (
            win_rate([0.5] * 40) == length_controlled([0.5] * 40, longer) == {"value": 0.5, "ci95": [0.5] * 2, "n": 40}
        )


def test_the_length_controlled_rate_of_a_two_by_two_table() -> None:
    """Answers are longer or shorter by one amount: θ is then the mean of the two log-odds (but for the ridge)."""
    preferences = [1.0] * 800 + [0.0] * 200 + [1.0] * 300 + [0.0] * 700
    longer = [7] * 1000 + [-7] * 1000
    theta = (math.log(0.8 / 0.2) + math.log(0.3 / 0.7)) / 2
    figure = length_controlled(preferences, longer)
    assert win_rate(preferences)["value"] == 0.55
    assert figure["value"] == pytest.approx(1 / (1 + math.exp(-theta)), abs=1e-4)
    # The variance of a mean of two independent log-odds, each with variance 1 / (n p (1 − p)).
    spread = math.sqrt(1 / 160 + 1 / 210) / 2
    bounds = [1 / (1 + math.exp(-(theta + part * spread))) for part in (-1.96, 1.96)]
    assert figure["ci95"] == pytest.approx(bounds, abs=1e-4)


def test_the_length_controlled_rate_is_the_optimum_of_the_written_down_likelihood() -> None:
    """Against two nested searches over the likelihood as the paper has it, without its difficulty term."""
    rng = random.Random(0)
    longer = [rng.gauss(3, 10) for _ in range(60)]
    preferences = [rng.choice([0.0, 0.5, 1.0, 1.0]) if one > 0 else rng.choice([0.0, 0.3, 1.0]) for one in longer]
    mean = sum(longer) / 60
    deviation = math.sqrt(sum((one - mean) ** 2 for one in longer) / 60)

    def minus_log_likelihood(theta: float, slope: float) -> float:
        total = RIDGE * (theta**2 + slope**2) / 2
        for y, one in zip(preferences, longer, strict=True):
            p = 1 / (1 + math.exp(-(theta + slope * math.tanh(one / deviation))))
            total -= y * math.log(p) + (1 - y) * math.log(1 - p)
        return total

    def best(theta: float) -> float:
        return minimize_scalar(lambda slope: minus_log_likelihood(theta, slope), bounds=(-9, 9), method="bounded").fun

    found: Any = minimize_scalar(best, bounds=(-5, 5), method="bounded")
    theta = found.x
    assert length_controlled(preferences, longer)["value"] == pytest.approx(1 / (1 + math.exp(-theta)), abs=1e-4)


def test_a_judge_of_length_alone_has_a_rate_near_one_half_at_equal_length() -> None:
    """Its raw rate says that the longer policy wins four times in five; with no length control that would be all."""
    rng = np.random.default_rng(0)
    longer = rng.normal(8, 10, size=2000)
    preferences = (longer > 0).astype(float)
    assert win_rate(preferences.tolist())["value"] > 0.75
    assert length_controlled(preferences.tolist(), longer.tolist())["value"] == pytest.approx(0.5, abs=0.08)
    noisy = (longer + rng.normal(0, 6, size=2000) > 0).astype(float)
    assert length_controlled(noisy.tolist(), longer.tolist())["value"] == pytest.approx(0.5, abs=0.08)


def test_a_judge_that_does_not_mind_length_is_left_as_it_is() -> None:
    rng = np.random.default_rng(1)
    longer = rng.normal(8, 10, size=4000)
    preferences = (rng.random(4000) < 0.7).astype(float)
    assert length_controlled(preferences.tolist(), longer.tolist())["value"] == pytest.approx(0.7, abs=0.03)


def test_where_one_side_always_wins_whatever_the_length_that_is_the_rate() -> None:
    longer = [*range(-50, 50)]
    won, lost = length_controlled([1.0] * 100, longer), length_controlled([0.0] * 100, longer)
    assert won["value"] > 0.99 and won["ci95"][0] > 0.95
    assert lost["value"] < 0.01 and lost["ci95"][1] < 0.05
    assert length_controlled([], []) == {"value": None, "ci95": None, "n": 0}


@pytest.mark.parametrize(
    ("preferences", "longer"),
    [
        ([1.0] * 50, [*range(10, 60)]),
        ([1.0] * 49 + [0.0], [*range(10, 60)]),
        ([1.0] * 30 + [0.0] * 10, [7] * 40),
    ],
)
def test_where_answers_are_always_longer_nobody_knows_what_they_would_be_at_equal_length(
    preferences: list[float], longer: list[int]
) -> None:
    """The raw rates are 1, 0.98 and 0.75, with narrow intervals; without the ridge's variance these are narrow too."""
    low, high = length_controlled(preferences, longer)["ci95"]
    assert low < 0.02 and high > 0.99
