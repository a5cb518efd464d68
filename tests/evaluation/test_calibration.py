"""Expected calibration error, and pass@k by its unbiased estimator."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from posttrain.evaluation.calibration import agreement, calibration
from posttrain.evaluation.statistics import pass_at


def by_hand(margins: list[float]) -> float:
    """Guo et al.'s sum, pair by pair."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for margin in margins:
        sure = 1 / (1 + math.exp(-abs(margin)))
        bins.setdefault(min(9, math.floor(10 * sure)), []).append((sure, float(margin > 0)))
    return sum(
        len(some) / len(margins) * abs(sum(r for _, r in some) / len(some) - sum(s for s, _ in some) / len(some))
        for some in bins.values()
    )


def test_the_error_is_that_of_the_formula() -> None:
    drawn = np.random.default_rng(0).normal(0.5, 2, 300).tolist()
    found = calibration(drawn)
    assert found["ece"]["value"] == pytest.approx(by_hand(drawn))
    assert sum(one["n"] for one in found["bins"]) == 300
    low, high = found["ece"]["ci95"]
    assert low < high and low < found["ece"]["value"] * 1.5
    assert calibration([]) == {"ece": {"value": None, "ci95": None, "n": 0}, "bins": []}


def test_a_model_that_is_as_sure_as_it_is_right_has_a_small_error_and_one_that_is_too_sure_a_large_one() -> None:
    drawn = np.random.default_rng(1)
    size = np.abs(drawn.normal(0, 2, 20_000))
    right = drawn.random(20_000) < 1 / (1 + np.exp(-size))
    margins = np.where(right, size, -size)
    assert calibration(margins.tolist())["ece"]["value"] < 0.01
    too_sure = calibration((5 * margins).tolist())["ece"]
    assert too_sure["value"] > 0.1 and too_sure["ci95"][0] > 0.1


def test_a_tie_is_half_right() -> None:
    """Sure by one half and right by one half: no error. The other pair is sure by 0.75 and wrong."""
    found = calibration([0.0, 0.0, -math.log(3)])
    assert found["ece"]["value"] == pytest.approx(0.75 / 3)
    assert found["bins"] == [
        {"confidence": 0.5, "accuracy": 0.5, "n": 2},
        {"confidence": pytest.approx(0.75), "accuracy": 0.0, "n": 1},
    ]


def test_probabilities_at_the_edge_of_a_bin_stay_together() -> None:
    """0.9 for ten answers, four of which are the worse ones; some in the bits that the mean of two orders has."""
    said = [0.9, (0.9 + 1 - 0.1) / 2, *[0.9] * 4, 0.1, (0.1 + 1 - 0.9) / 2, 0.1, 0.1]
    assert len(set(said)) > 2
    found = agreement(said, probabilities=True)
    assert found["pair_accuracy"]["value"] == pytest.approx(0.6)
    assert found["ece"]["value"] == pytest.approx(0.3)
    assert [(one["n"], one["accuracy"]) for one in found["bins"]] == [(10, pytest.approx(0.6))]


def test_agreement_counts_a_tie_one_half_and_takes_a_judge_who_is_quite_sure() -> None:
    """Sure by 1, 1 and 0.5, right by 1, 0 and 0.5: the errors are |1 + 0 − 2| and 0 of three."""
    found = agreement([1.0, 0.0, 0.5], probabilities=True)
    assert found["pair_accuracy"]["value"] == 0.5 and found["pair_accuracy"]["n"] == 3
    assert found["ece"]["value"] == pytest.approx(1 / 3)
    assert agreement([1.0, 0.0, 0.5], probabilities=False) == {"pair_accuracy": found["pair_accuracy"]}
    nothing = {"value": None, "ci95": None, "n": 0}
    assert agreement([], probabilities=True) == {"pair_accuracy": nothing, "ece": nothing, "bins": []}


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_pass_at_k_is_the_mean_over_all_choices_of_k(k: int) -> None:
    answers = [[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0]]
    wanted = [sum(max(some) for some in itertools.combinations(of, k)) / math.comb(6, k) for of in answers]
    found = pass_at(k, [(len(of), sum(of)) for of in answers])
    assert found["value"] == pytest.approx(sum(wanted) / 4) and found["n"] == 4


def test_prompts_with_fewer_answers_than_k_are_left_out() -> None:
    assert pass_at(4, [(8, 8), (2, 2)])["n"] == 1
    assert pass_at(4, [(2, 2)])["value"] is None
