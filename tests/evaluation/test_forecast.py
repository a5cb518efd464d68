"""The forecast of accuracy, on curves whose parameters are known."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from posttrain.evaluation.forecast import ROUND, Point, forecast, normalised

START, SCALE, POWER = 0.8, 1.0, 0.2


def unlikely(answers: float) -> float:
    return START * (1 + answers / SCALE) ** -POWER


def right(nll: float) -> float:
    return 1 / (1 + math.exp(-(2.2 - 4.1 * nll)))


def points(*answers: float) -> list[Point]:
    return [Point(one, unlikely(one), right(unlikely(one))) for one in answers]


def test_the_likelihood_of_right_answers_is_their_share_of_what_all_candidates_have() -> None:
    totals = [math.log(each) for each in (0.02, 0.01, 0.07)]
    assert normalised(totals, [True, True, False]) == pytest.approx(-math.log(0.3))
    assert normalised([one - 500 for one in totals], [True, True, False]) == pytest.approx(-math.log(0.3))
    assert normalised([-1e4, 0.0], [True, False]) == pytest.approx(-math.log(0.001))
    assert normalised(totals, [True] * 3) is None and normalised(totals, [False] * 3) is None


def test_later_rounds_are_found_where_the_curves_are_those() -> None:
    found = forecast([points(0, 10, 20)], [30, 60, 120])
    assert found
    for answers, figure in zip((30, 60, 120), found, strict=True):
        assert figure["value"] == pytest.approx(right(unlikely(answers)), abs=0.003)
        assert figure["ci95"][0] < figure["value"] < figure["ci95"][1] and figure["n"] == 2
    widths = [figure["ci95"][1] - figure["ci95"][0] for figure in found]
    assert widths == sorted(widths)  # the farther, the less is known


def test_a_round_that_brings_more_than_the_one_before_is_not_followed() -> None:
    steeper = [Point(0, 0.77, 0.24), Point(10, 0.65, 0.45), Point(20, 0.53, 0.53)]
    found = forecast([steeper], [30, 60])
    assert found and 0.53 < found[0]["value"] < 0.6 and found[1]["value"] < 0.65


def test_more_runs_make_it_surer() -> None:
    one = forecast([points(0, 10, 20)], [80])
    both = forecast([points(0, 10, 20), points(0, 20, 40)], [80])
    assert one and both

    def width(found: list[dict]) -> float:
        return found[0]["ci95"][1] - found[0]["ci95"][0]

    assert width(both) < 0.8 * width(one)
    assert both[0]["value"] == pytest.approx(right(unlikely(80)), abs=0.003)


def test_a_run_of_a_smaller_model_says_how_the_curve_goes_on() -> None:
    def smaller(answers: float) -> Point:  # gains less, from a worse start, and is right less often where it is as sure
        nll = 1.3 * (1 + answers / SCALE) ** -0.1
        return Point(answers, nll, 1 / (1 + math.exp(-(1.5 - 4.1 * nll))))

    disturbed = [point._replace(nll=point.nll * by) for point, by in zip(points(0, 10, 20), (1, 1, 0.97), strict=True)]
    alone = forecast([disturbed], [120])
    helped = forecast([disturbed], [120], others=[[smaller(answers) for answers in (0, 10, 20, 40, 60, 90, 120)]])
    assert alone and helped
    errors = [abs(found[0]["value"] - right(unlikely(120))) for found in (alone, helped)]
    widths = [found[0]["ci95"][1] - found[0]["ci95"][0] for found in (alone, helped)]
    assert errors[1] < errors[0] and widths[1] < widths[0]
    solved = [smaller(0), smaller(10), Point(20, 0.0, 1.0)]
    for silent in ([smaller(0), smaller(0)], solved):  # of no round, or with nothing left to get right
        assert forecast([points(0, 10, 20)], [120], others=[silent]) == forecast([points(0, 10, 20)], [120])


def test_rounds_that_chance_moves_lie_inside_as_often_as_the_interval_says() -> None:
    drawn, inside = random.Random(0), 0
    for _ in range(100):

        def measured(answers: float) -> Point:
            nll = unlikely(answers) * math.exp(drawn.gauss(0, ROUND) if answers else 0.0)
            return Point(answers, nll, right(nll))

        found = forecast([[measured(0), measured(10), measured(20)]], [50])
        assert found
        low, high = found[0]["ci95"]
        inside += low <= measured(50).accuracy <= high
    assert 89 <= inside <= 100


@pytest.mark.parametrize("answers", [160, 1600])
def test_the_chance_of_few_answers_is_in_the_interval(answers: int) -> None:
    drawn, inside = random.Random(1), 0

    def width(found: list[Any] | None) -> float:
        assert found
        return found[0]["ci95"][1] - found[0]["ci95"][0]

    for _ in range(100):

        def measured(spent: float) -> Point:
            true = right(unlikely(spent))
            right_ones = sum(drawn.random() < true for _ in range(answers))
            return Point(spent, unlikely(spent), right_ones / answers, answers)

        found = forecast([[measured(0), measured(10), measured(20)]], [50], heldout_answers=answers)
        assert found
        low, high = found[0]["ci95"]
        inside += low <= measured(50).accuracy <= high
    assert inside >= 89
    known = points(0, 10, 20)
    sure, few = width(forecast([known], [50])), width(forecast([known], [50], heldout_answers=answers))
    share = right(unlikely(50))
    alone = 2 * 1.96 * math.sqrt(share * (1 - share) / answers)
    assert few == pytest.approx(math.hypot(sure, alone), rel=0.05)


def test_of_an_accuracy_only_what_lies_within_prompts_is_chance() -> None:
    whole, half = (Point(0, 0.5, 0.5, 400, within) for within in (1.0, 0.25))
    assert whole.error() == pytest.approx(math.sqrt(1 / (400 * 0.25))) and half.error() == pytest.approx(
        whole.error() / 2
    )
    none = Point(0, 0.5, 0.0, 400)
    assert none.odds() == pytest.approx(math.log(0.5 / 400.5)) and 1 < none.error() < 2


def test_where_nothing_was_gained_or_too_little_measured_there_is_none() -> None:
    worse = [Point(0, 0.5, 0.4), Point(10, 0.6, 0.3), Point(20, 0.6, 0.3)]
    assert forecast([worse], [30]) is None
    sinks = [Point(0, 0.8, 0.5), Point(10, 0.6, 0.4), Point(20, 0.5, 0.3)]  # while the right ones become likelier
    assert forecast([sinks], [30]) is None
    assert forecast([points(0, 10)], [30]) is None
    assert forecast([points(0, 0, 0)], [30]) is None  # nothing was sampled to learn from
